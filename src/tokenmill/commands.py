"""What each command does; every function takes the parsed arguments and returns an exit code.

Beside `stage_training`, only this file knows both the data side (`pipelines`) and the trainer (`train`), which meet in
files on disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.recipe import Recipe, load_recipe, storage_options
from tokenmill.stage_rows import caption_row, data_row, describe_row, plan_row
from tokenmill.stage_training import train_model, train_vision_tokenizer

# Which stages of the chain a command may work on; everything before only has to be there already.
_WORK = {
    "ingest": ("ingest",),
    "split": ("split",),
    "score": ("split", "score"),
    "select": ("takedown", "decontaminate", "compare", "duplicates", "select"),
    "filter": ("split", "score", "takedown", "decontaminate", "compare", "duplicates", "select"),
    "caption": ("caption", "choose"),
    "tokenize": ("tokenize",),
    "plan": ("plan",),
}
_DATA_STAGES = ("ingest", "split", "score", "select", "caption", "tokenize", "plan")
ALL_STAGES = (*_DATA_STAGES, "train", "generate", "evaluate", "report")


def run(options: argparse.Namespace) -> int:
    """Every stage up to `--until`, resuming."""
    recipe = load_recipe(options.recipe, options.overrides)
    until = {"filter": "select"}.get(options.until, options.until) or ALL_STAGES[-1]
    work = {name for stage in _DATA_STAGES[: ALL_STAGES.index(until) + 1] for name in _WORK[stage]}
    chain = _chain(recipe, options, work)
    rows = [_timed(name, recipe, chain, options) for name in ALL_STAGES[: ALL_STAGES.index(until) + 1]]
    _tell(options, {"root": recipe.root, "stages": rows})
    return 0


def stage(options: argparse.Namespace) -> int:
    """One stage; those before it must be complete."""
    if options.command == "plan":
        from tokenmill.simulation import asked_for

        if asked_for(options):
            return _simulate(options)
    if options.command == "train":
        from tokenmill import training_estimate

        if training_estimate.asked_for(options):
            return _estimate_training(options)
    recipe = load_recipe(options.recipe, options.overrides)
    if getattr(options, "hostfile", None) is not None:
        from tokenmill.stage_training import train_on_hosts

        return train_on_hosts(options)
    chain = _chain(recipe, options, set(_WORK.get(options.command, ())))
    names = {"score": ("split", "score"), "filter": ("split", "score", "select")}.get(options.command)
    rows = [_timed(name, recipe, chain, options) for name in names or (options.command,)]
    _tell(options, {"root": recipe.root, "stages": rows})
    return 0


def _simulate(options: argparse.Namespace) -> int:
    """Tell what training on the recipe's plan, which has to be there, would read."""
    from tokenmill.simulation import render_simulation, simulated

    recipe = load_recipe(options.recipe, options.overrides)
    found = simulated(recipe, _chain(recipe, options, set()).plan, options.ranks, options.workers, options.steps)
    print(json.dumps(found, indent=1) if options.json else render_simulation(found))
    return 0


def _estimate_training(options: argparse.Namespace) -> int:
    """Tell what the recipe's training would need and take."""
    from tokenmill.training_estimate import estimated, render_estimate

    recipe = load_recipe(options.recipe, options.overrides)
    try:
        found = estimated(recipe, lambda phase: _chain(recipe, options, set()).plan_of(phase), options)
    except RecipeError as error:
        raise RecipeError(f"{options.recipe}: {error}") from error
    print(json.dumps(found, indent=1) if options.json else render_estimate(found))
    return 0


def status(options: argparse.Namespace) -> int:
    """Progress from the commit records alone."""
    from tokenmill.pipelines.status import render_status, status_of

    found = status_of(load_recipe(options.recipe, options.overrides))
    print(json.dumps(found, indent=1) if options.json else render_status(found))
    return 0


def report(options: argparse.Namespace) -> int:
    """Write the report."""
    recipe = load_recipe(options.recipe, options.overrides)
    _tell(options, {"root": recipe.root, "stages": [_timed("report", recipe, _chain(recipe, options, set()), options)]})
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Describe what lies at a path, or the selection of a recipe."""
    if Path(options.path).suffix in (".yaml", ".yml") and "://" not in options.path:
        found, text = _inspect_selection(options)
    else:
        given = [*(["--what-if"] if options.what_if else []), *(["--sql"] if options.sql else []), *options.overrides]
        if given:
            raise RecipeError(f"{given[0]}: goes with a recipe, not with {options.path}")
        found, text = _inspect_place(options)
    print(json.dumps(found, indent=1, default=str) if options.json else text)
    return 0


def _inspect_place(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Describe what lies at a path, or a pack or step of the plan that lies there."""
    storage = storage_options(options.storage)
    if _looks_into_plan(options):
        from tokenmill.plan_inspection import PlanView, inspect_plan

        if options.key is not None:
            raise RecipeError("--key: goes with an archive, not with a plan")
        names = ("pack", "step", "global_packs", "sources")
        return inspect_plan(options.path, PlanView(**{name: getattr(options, name) for name in names}), storage)
    from tokenmill.inspection import inspect_path

    return inspect_path(options.path, options.key, storage=storage)


def _looks_into_plan(options: argparse.Namespace) -> bool:
    return options.sources or any(value is not None for value in (options.pack, options.step, options.global_packs))


def _inspect_selection(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tokenmill.pipelines.inspect_selection import inspect_recipe, render_selection

    if options.key or options.storage:
        raise RecipeError(f"{'--key' if options.key else '--storage'}: does not go with a recipe")
    if _looks_into_plan(options):
        raise RecipeError("--pack, --step, --global-packs and --sources: go with a plan's folder, not with a recipe")
    if options.what_if and options.sql:
        raise RecipeError("--what-if and --sql: one at a time")
    recipe = load_recipe(options.path, options.overrides)
    try:
        found = inspect_recipe(recipe, what_if=options.what_if, sql=options.sql)
    except RecipeError as error:
        raise RecipeError(f"{options.path}: {error}") from error
    return {"recipe": options.path, **found}, render_selection(found)


def index_tokens(options: argparse.Namespace) -> int:
    """Index token shards of others; exit 1 if none of their samples can be used."""
    from tokenmill.token_index import index_shards, render_index

    found = index_shards(options.url, options.root, options.source, options.vocabulary, options.vision, options.set,
                         storage_options(options.storage), quiet=options.json)  # fmt: skip
    print(json.dumps(found, indent=1) if options.json else render_index(found))
    return 0 if found["kept"] else 1


def detokenize(options: argparse.Namespace) -> int:
    """Write pictures and clips of token archives; exit 1 if some could not be."""
    from tokenmill.detokenization import detokenize as write
    from tokenmill.detokenization import render_detokenized

    done = write(options.shard, options.key, options.out, options.vision, storage_options(options.storage))
    print(json.dumps(done.to_json(), indent=1) if options.json else render_detokenized(done, options.out))
    for fault in done.faults:
        print(f"tokenmill detokenize: {fault}", file=sys.stderr)
    return 1 if done.faults else 0


def verify(options: argparse.Namespace) -> int:
    """Exit 1 and name every fault, or 0."""
    from tokenmill.verification import verify_path

    found = verify_path(options.path, storage_options(options.storage), deep=options.deep)
    if options.json:
        print(json.dumps({"path": options.path, **asdict(found)}, indent=1))
    else:
        for fault in found.faults:
            print(fault)
        for note in found.notes:
            print(f"note: {note}")
        told = f"{found.folders} folders, {found.records} records, {found.files} files, {found.bytes / 2**20:,.1f} MiB"
        print(f"{options.path}: {len(found.faults) or 'no'} faults in {told}")
    return 1 if found.faults else 0


def gc(options: argparse.Namespace) -> int:
    """Tell what nobody names, and remove it if asked."""
    from tokenmill.pipelines.kept import GcOptions, collect

    recipe = load_recipe(options.recipe, options.overrides)
    wanted = GcOptions(
        older_than_s=options.older_than * 3600,
        all_snapshots=options.all_snapshots,
        old_settings=options.old_settings,
        old_plans=options.old_plans,
        old_captions=options.old_captions,
    )
    sweep = collect(recipe, wanted, apply_it=options.apply)
    totals = sweep.totals()
    if options.json:
        found = {"root": recipe.root, "applied": options.apply, "kinds": totals, "notes": sweep.notes}
        print(json.dumps({**found, "objects": [asdict(one) for one in sweep.doomed]}, indent=1))
        return 0
    for note in sweep.notes:
        print(f"note: {note}")
    for kind, found in totals.items():
        print(f"{kind:<10} {found['objects']:>8,} objects  {found['bytes'] / 2**20:10,.1f} MiB")
    count = sum(found["objects"] for found in totals.values())
    told = "removed" if options.apply else f"may go; tokenmill gc {options.recipe} --apply removes it"
    print(f"{recipe.root}: {count:,} objects {told}" if count else f"{recipe.root}: nothing may go")
    return 0


def takedown(options: argparse.Namespace) -> int:
    """Take samples down; exit 1 if some were not found."""
    from tokenmill.pipelines.takedown import TakedownOptions, read_identifiers, render_takedown, take_down

    recipe = load_recipe(options.recipe, options.overrides)
    asked = [
        identifier
        for name in ("keys", "urls", "hashes")
        for path in getattr(options, name) or ()
        for identifier in read_identifiers(Path(path), name, distance=options.distance)
    ]
    if not asked:
        raise RecipeError("names no samples; give --keys, --urls or --hashes FILE")
    report = take_down(recipe, asked, TakedownOptions(rewrite=options.rewrite, reason=options.reason))
    print(json.dumps(report, indent=1) if options.json else render_takedown(report))
    return 1 if report["not_found"] else 0


def submit(options: argparse.Namespace) -> int:
    """Run a stage as a Ray job."""
    from tokenmill.pipelines.submission import Submission
    from tokenmill.pipelines.submission import submit as submit_job

    load_recipe(options.recipe, options.overrides)
    if options.until and options.stage != "run":
        raise RecipeError(f"--until {options.until}: goes with run, not with {options.stage}")
    flags = [f"--{name}={value}" for name in ("until", "limit") if (value := getattr(options, name)) is not None]
    how = Submission(
        address=options.address,
        wait=not options.no_wait,
        job_id=options.job_id,
        env=tuple(options.env),
        pip=Path(options.pip) if options.pip else None,
        flags=(*flags, *(["--retry-failed"] if options.retry_failed else []), *(["--json"] if options.json else [])),
    )
    return submit_job(options.stage, Path(options.recipe), options.overrides, how)


def estimate(options: argparse.Namespace) -> int:
    """What the whole recipe would take, from a few units of it."""
    from tokenmill.pipelines.estimate import estimate as measure
    from tokenmill.pipelines.estimate import render
    from tokenmill.pipelines.estimate_figures import Cluster

    for name in ("units", "workers", "nodes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RecipeError(f"--{name} {value}: has to be at least 1")
    cluster = Cluster(
        workers=options.workers,
        nodes=options.nodes,
        price_per_hour=options.price_per_hour,
        gpu_price_per_hour=options.gpu_price_per_hour,
    )
    found = measure(load_recipe(options.recipe, options.overrides), units=options.units, cluster=cluster)
    print(json.dumps(found.to_json(), indent=1) if options.json else render(found))
    return 0


def export_clips(options: argparse.Namespace) -> int:
    """Write clips as mp4; exit 1 if some could not be."""
    from tokenmill.manifests.storage import open_store
    from tokenmill.pipelines.export_clips import ExportOptions, render_exported
    from tokenmill.pipelines.export_clips import export_clips as export

    if options.limit is not None and options.limit < 1:
        raise RecipeError(f"--limit {options.limit}: has to be at least 1")
    recipe = load_recipe(options.recipe, options.overrides)
    storage = storage_options(options.storage) if options.storage else recipe.storage
    wanted = ExportOptions(limit=options.limit, kept=options.kept)
    done = export(make_chain(recipe, set(), quiet=options.json), open_store(options.to, storage), wanted)
    print(
        json.dumps({"to": options.to, **done.to_json()}, indent=1)
        if options.json
        else render_exported(options.to, done)
    )
    return 1 if done.failed else 0


def train_tokenizer(options: argparse.Namespace) -> int:
    """The chain up to the selection, then the recipe's vision tokenizer on what was kept."""
    recipe = load_recipe(options.recipe, options.overrides)
    if recipe.tokenizer is None:
        raise RecipeError(f"{options.recipe}: tokenizer: is missing; it says what to train (docs/vision_tokenizer.md)")
    before = ("ingest", "split", "score", "select")
    chain = _chain(recipe, options, {name for stage in before for name in _WORK[stage]})
    try:
        from tokenmill.pipelines.sample_list import sources_of_training
        from tokenmill.train.vision_launch import check_files

        sources_of_training(chain, recipe.tokenizer)
        check_files(recipe.tokenizer, chain.store)
    except RecipeError as error:
        raise RecipeError(f"{options.recipe}: {error}") from error
    rows = [_timed(name, recipe, chain, options) for name in before]
    rows.append(_timed("train-tokenizer", recipe, chain, options))
    _tell(options, {"root": recipe.root, "stages": rows})
    return 0


def demo(options: argparse.Namespace) -> int:
    """The whole way on the demo's data."""
    from tokenmill.demo.run import run_demo

    return run_demo(Path(options.out), options.overrides, as_json=options.json)


def make_chain(recipe: Recipe, work: set[str] | None = None, **options: Any) -> Any:
    """Return a recipe's chain of stages, of which those in `work` (None: all) may compute.

    Raises:
        RecipeError: the sections do not fit each other or what they name; nothing has started then.
    """
    from tokenmill.pipelines.chain import Chain, ChainOptions
    from tokenmill.pipelines.checks import check_chain

    wanted = {name for stage in _WORK.values() for name in stage} if work is None else work
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(wanted), **options))
    check_chain(chain)
    return chain


def _chain(recipe: Recipe, options: argparse.Namespace, work: set[str]) -> Any:
    try:
        return make_chain(recipe, work, limit=options.limit, retry_failed=options.retry_failed, quiet=options.json)
    except RecipeError as error:
        raise RecipeError(f"{options.recipe}: {error}") from error


def _timed(name: str, recipe: Recipe, chain: Any, options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    row = run_one_stage(name, recipe, chain)
    row = {"stage": name, "seconds": round(time.perf_counter() - started, 2), **row}
    if not options.json:
        print(describe_row(row), flush=True)
    return row


def run_one_stage(name: str, recipe: Recipe, chain: Any) -> dict[str, Any]:
    """Run a stage (`ingest` … `report`) of a recipe and return a row of what came out.

    Raises:
        RecipeError: there is no such stage. RunError and others: the stage failed.
    """
    if name == "plan":
        return plan_row({phase: plan.description for phase, plan in chain.plans.items()})
    if name == "caption":
        return caption_row(chain)
    if name in _DATA_STAGES:
        return data_row(chain.snapshots(name))
    if name == "train":
        return train_model(recipe, chain)
    if name == "train-tokenizer":
        return train_vision_tokenizer(recipe, chain)
    if name == "generate":
        from tokenmill.pipelines.drawing_jobs import JobOptions
        from tokenmill.pipelines.job_stage import generate

        asked = chain.options
        return generate(recipe, JobOptions(limit=asked.limit, retry_failed=asked.retry_failed, quiet=asked.quiet))
    if name == "evaluate":
        from tokenmill.pipelines.evaluation import evaluate_model

        return evaluate_model(recipe)
    if name == "report":
        from tokenmill.pipelines.report import write_report

        return {"report": write_report(recipe, chain)}
    raise RecipeError(f"no stage {name!r}; allowed: {', '.join(ALL_STAGES)}")


def _tell(options: argparse.Namespace, value: dict[str, Any]) -> None:
    if options.json:
        json.dump(value, sys.stdout, indent=1, default=str)
        print()
