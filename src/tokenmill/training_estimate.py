"""`tokenmill train RECIPE --estimate`: memory of a GPU, ids a second and days of a recipe's training, as table or JSON.

The recipe's plan is taken where there is one. Without it nothing but the recipe is needed: packs are then taken as full
and as one document each, which costs attention the most it can.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RecipeError, TokenmillError

if TYPE_CHECKING:
    from tokenmill.recipe import Recipe
    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.estimate import Machines, Workload

log = logging.getLogger(__name__)
_SAMPLED_PACKS = 2000  # whose attention stands for that of all: shards are shuffled before they are planned
_OPTIONS = ("gpu", "gpus", "utilization")


def add_arguments(train: argparse.ArgumentParser) -> None:
    """Add what `train` takes for an estimate."""
    text = "what it would need of each GPU, and how long it would take; nothing is built or trained"
    train.add_argument("--estimate", action="store_true", help=text)
    train.add_argument("--gpu", metavar="NAME", help="with --estimate: H100 (default), H200, A100, L40S, …")
    train.add_argument("--gpus", type=int, metavar="N", help="with --estimate; absent: train.ranks")
    text = "with --estimate: share of its peak that a GPU reaches, recomputed layers counted as work (0.4)"
    train.add_argument("--utilization", type=float, metavar="X", help=text)


def asked_for(options: argparse.Namespace) -> bool:
    """Say whether an estimate is wanted; raises RecipeError for its options without `--estimate`."""
    given = [f"--{name}" for name in _OPTIONS if getattr(options, name) is not None]
    if given and not options.estimate:
        raise RecipeError(f"{given[0]}: goes with --estimate")
    return bool(options.estimate)


def estimated(recipe: Recipe, plan_of: Callable[[str], Any], options: argparse.Namespace) -> dict[str, Any]:
    """Estimate a recipe's training, each phase by itself if it has several.

    `plan_of` opens the plan of a phase, or raises a TokenmillError where there is none.
    """
    from tokenmill.train.devices import named_device
    from tokenmill.train.estimate import UTILIZATION, Machines

    utilization = UTILIZATION if options.utilization is None else options.utilization
    gpus = recipe.train.ranks if options.gpus is None else options.gpus
    if gpus < 1 or not 0 < utilization <= 1:
        raise RecipeError(f"--gpus {gpus}, --utilization {utilization}: at least one GPU, and a share from 0 to 1")
    machines = Machines(device=named_device(options.gpu or "H100"), gpus=gpus, utilization=utilization)
    runs = {name: _of_run(recipe, run, plan_of, machines) for name, run in recipe.train.resolved().items()}
    if not recipe.train.phases:
        return next(iter(runs.values()))
    days = [run["days"] for run in runs.values()]
    return {"phases": runs, "days": None if None in days else sum(days)}


def _of_run(recipe: Recipe, settings: TrainSettings, plan_of: Callable[[str], Any], machines: Machines) -> Any:
    from tokenmill.tokenize.vocabulary import vocabulary_shape
    from tokenmill.train.estimate import estimate

    _check_sizes(recipe, settings)
    plan = _plan_if_there(plan_of, settings.phase)
    vocabulary = vocabulary_shape(plan.description["vocabulary"] if plan else recipe.tokenize.vocabulary)
    work = _work_of(plan) if plan else _work_without(recipe, settings.phase)
    return {"plan": plan.plan_id if plan else None, **estimate(settings, vocabulary, work, machines).to_json()}


def _check_sizes(recipe: Recipe, settings: TrainSettings) -> None:
    """Refuse to reckon with the default sizes where the model is that of a run which the recipe does not describe."""
    before = (settings.start_from or "").partition("@")[0]
    if before and settings.model.is_left_out and before not in {one.run for one in recipe.train.resolved().values()}:
        raise RecipeError(
            f"train.model: is left to train.start_from, {settings.start_from}, which an estimate does not look up; "
            "name a preset or sizes"
        )


def _plan_if_there(plan_of: Callable[[str], Any], phase: str) -> Any:
    try:
        return plan_of(phase)
    except TokenmillError as error:
        log.info("%s: no plan yet (%s): packs are taken as full, and as one document each", phase, error)
        return None


def _work_of(plan: Any) -> Workload:
    from tokenmill.manifests.plan_border import first_step
    from tokenmill.train.estimate import Workload

    sampled = plan.costs(0, min(plan.num_packs, _SAMPLED_PACKS))
    return Workload(
        context=plan.context,
        tokens=float(sampled.tokens.mean()),
        squares=float(sampled.squares.mean()),
        packs=plan.num_packs,
        first_step=first_step(plan.description),
    )


def _work_without(recipe: Recipe, phase: str) -> Workload:
    from tokenmill.train.estimate import Workload

    phases = recipe.plan.resolved()
    if phase not in phases:
        raise RecipeError(f"train.phase: {phase!r} is none of the plan's: {', '.join(phases)}")
    context, tokens = phases[phase].context, phases[phase].tokens
    packs = None if tokens is None else -(-tokens // context)
    return Workload(context=context, tokens=float(context), squares=float(context) ** 2, packs=packs)


def render_estimate(found: Mapping[str, Any]) -> str:
    """Return an estimate as text."""
    if "phases" not in found:
        return "\n".join(_lines(found))
    told = [f"phase {name}:\n" + "\n".join(_lines(one)) for name, one in found["phases"].items()]
    days = [] if found["days"] is None else [f"all phases: {found['days']:,.3g} days"]
    return "\n\n".join(told + days)


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    gib, memory = 2**30, found["memory_bytes"]
    yield f"{found['parameters'] / 1e6:,.1f} million parameters on {found['gpus']:,} × {found['gpu']}; of the fullest:"
    for name, size in memory.items():
        if name != "total":
            yield f"  {name.replace('_', ' '):<18} {size / gib:8.2f} GiB"
    held, share = found["gpu_memory_bytes"] / gib, memory["total"] / found["gpu_memory_bytes"]
    verdict = "fits" if found["fits"] else "does not fit"
    yield f"  {'together':<18} {memory['total'] / gib:8.2f} GiB of {held:.1f} ({100 * share:.0f} %): {verdict}"
    yield "  (of the recomputed layer and the logits only the larger counts: they are not there together)"
    if found["host_memory_bytes"]:
        yield f"  memory of the host  {found['host_memory_bytes'] / gib:8.2f} GiB for each GPU"
    yield (
        f"{found['tokens_per_s']:,.0f} ids a second, {found['tokens_per_s_of_a_gpu']:,.0f} a GPU, at "
        f"{100 * found['utilization']:.0f} % of its peak (assumed; MFU {found['mfu']:.2f})"
    )
    idle = f", {100 * found['idle']:.0f} % of the places in a step empty" if found["idle"] > 0 else ""
    yield f"a step: {found['step_s']:,.3g} s in {found['micro_steps']:,} micro-steps{idle}"
    if found["days"] is None:
        yield "days: unknown; make a plan first, or set train.steps"
    else:
        yield (
            f"{found['steps']:,} steps, {found['tokens'] / 1e6:,.1f} million ids: {found['days']:,.3g} days, "
            f"{found['gpu_hours']:,.3g} GPU hours"
        )
