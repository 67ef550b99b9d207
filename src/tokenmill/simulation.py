"""`tokenmill plan RECIPE --simulate`: what training on a plan would read, as a table or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.recipe import Recipe

_FIRST_STEPS = 100


def asked_for(options: argparse.Namespace) -> bool:
    """Say whether a simulation is wanted; raises RecipeError for its options without `--simulate`."""
    given = [f"--{name}" for name in ("ranks", "workers", "steps") if getattr(options, name) is not None]
    if given and not options.simulate:
        raise RecipeError(f"{given[0]}: goes with --simulate")
    return bool(options.simulate)


def simulated(recipe: Recipe, plan: Any, ranks: int | None, workers: int | None, steps: str | None) -> dict[str, Any]:
    """Simulate a recipe's training on a plan; raises RecipeError for numbers that are none.

    Steps count over the whole run: those of a plan that continues another begin where it takes over.
    """
    from tokenmill.manifests.plan_border import first_step
    from tokenmill.tokenize.vocabulary import build_vocabulary
    from tokenmill.train.model import attention_share_of
    from tokenmill.train.schedule import steps_per_epoch
    from tokenmill.train.simulate import Simulated, simulate

    train = recipe.train.last
    for name, value, least in ("ranks", ranks, 1), ("workers", workers, 0):
        if value is not None and value < least:
            raise RecipeError(f"--{name} {value}: has to be at least {least}")
    first = first_step(plan.description)
    last = first + min(_FIRST_STEPS, steps_per_epoch(plan.num_packs, train.global_packs_per_step))
    start, stop = (first, last) if steps is None else _range(steps)
    if start < first:
        raise RecipeError(f"--steps {steps}: {plan.folder.path} takes over at step {first:,} of the run")
    vocabulary = build_vocabulary(plan.description["vocabulary"])
    how = Simulated(
        ranks=ranks or train.ranks,
        workers=workers or 0,
        global_packs=train.global_packs_per_step,
        micro_packs=train.micro_packs,
        sequence_parallel=train.sequence_parallel,
        attention_share=attention_share_of(train.model, vocabulary, plan.context),
        loader=train.loader,
    )
    found = simulate(plan.folder.store, plan.folder.path, how, start - first, stop - first)
    return found | {"steps": [start, stop]}


def _range(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    try:
        found = int(start or 0), int(stop)
    except ValueError:
        found = 0, 0
    if not colon or not 0 <= found[0] < found[1]:
        raise RecipeError(f"--steps {text}: of the form A:B, steps from A to before B, counted from 0")
    return found


def render_simulation(found: Mapping[str, Any]) -> str:
    """Return a simulation as text."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    samples, tables, memory, spread = (
        found[name] for name in ("samples", "tables_of_a_process", "memory_of_a_process", "spread")
    )
    workers = f"{found['workers']} workers each" if found["workers"] else "threads"
    yield (
        f"plan {found['plan'][:16]}, steps {found['steps'][0]:,} to {found['steps'][1] - 1:,}: {found['ranks']} ranks, "
        f"{workers}, {found['global_packs']} packs a step, {found['micro_packs']} at once"
    )
    yield (
        f"samples: {_size(samples['bytes'])} in {samples['requests']:,} requests, of which "
        f"{_size(samples['bytes_used'])} are used; {samples['shards']:,} shards, at most {samples['files_open']:,} "
        "open on a rank"
    )
    for name, one in tables.items():
        yield f"{name}: {one['files']:,} files, {one['reads']:,} reads, {_size(one['bytes'])} in each process"
    yield f"processes: {found['processes']:,}; windows and indexes of all: {_size(found['table_bytes'])}"
    parts = ", ".join(f"{name} {_size(number)}" for name, number in memory.items() if name != "all")
    yield f"memory of a process: {_size(memory['all'])} ({parts}); of a rank: {_size(found['memory_of_a_rank'])}"
    told = ", ".join(f"{name.replace('_', ' ')} {number:.3f}" for name, number in spread.items())
    yield f"largest by mean over ranks: {told}"
    yield ""
    yield f"{'rank':>6}  {'requests':>10}  {'read':>10}  {'used':>10}  {'largest step':>12}  {'ids':>12}  {'shards':>7}"
    for rank in found["of_ranks"]:
        yield (
            f"{rank['rank']:>6}  {rank['requests']:>10,}  {_size(rank['bytes']):>10}  {_size(rank['bytes_used']):>10}  "
            f"{_size(rank['largest_step_bytes']):>12}  {rank['tokens']:>12,}  {rank['shards']:>7,}"
        )


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    raise AssertionError
