"""Which plan another one continues, and from which step on: `PLAN@STEP`, or a run and its checkpoint.

The new plan holds what remains of the old one and all that the recipe now asks for and the old one did not have. So
data, mix, templates, context and weights may change in between; what the draws of the old plan hang on may not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, RecipeError, StorageError
from tokenmill.manifests.identity import short
from tokenmill.manifests.plan_border import Border, first_step
from tokenmill.manifests.plans import Plan, open_plan, plan_paths
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD
from tokenmill.pipelines.plan_carried import CARRIED, GONE
from tokenmill.pipelines.plan_continue_seen import unfinished_sources
from tokenmill.settings_train import PlanSettings, TrainSettings
from tokenmill.tokenize.vocabulary import Vocabulary

_DIGITS = re.compile(r"[0-9a-f]{16}")
_WHERE = "plan.continue_from"
_FIXED = ("seed", "held_out", "part")  # what is drawn of a source hangs on them


def border_of(store: Store, asked: str, phase: str, train: TrainSettings) -> Border:
    """Find the place that `PLAN@STEP`, `RUN` or `RUN@STEP` means.

    PLAN is a plan's folder (relative to the root, or its whole path or URL) or its 16 digits, in the recipe's phase;
    RUN is the name of a run, its folder, or the folder of one of its checkpoints. Steps count over the whole run; `end`
    is the plan's end. Raises RecipeError, which says what is there.
    """
    name, step = _parted(asked)
    path = _relative(store, name)
    run, checkpoint = _run_and_step(store, path)
    if run is not None:
        return _border_of_run(store, run, _step_number(asked, step, None) if step else checkpoint, train)
    plan = _plan_at(store, f"plans/{phase}/{path}" if _DIGITS.fullmatch(path) else path, phase)
    if step is None:
        raise RecipeError(f"{_WHERE}: {asked} names no step; write {name}@STEP")
    size = train.global_packs_per_step
    border = Border(plan=plan, step=_step_number(asked, step, plan, size), global_packs=size)
    _check_step(border, asked, train)
    _check_run(store, border, train)
    return border


def step_of(asked: str) -> int | None:
    """Return the number behind the `@` of a text, if it has one."""
    step = _parted(asked)[1]
    return int(step) if step is not None and step.isdecimal() else None


def names_step(asked: str) -> bool:
    """Say whether a text names one place for good: with a step, or as the folder of one checkpoint."""
    name, step = _parted(asked)
    return step is not None or name.rstrip("/").rsplit("/", 1)[-1].startswith("step-")


def check_continued(border: Border, settings: PlanSettings, vocabulary: Vocabulary) -> None:
    """Refuse what cannot change in the middle of a plan; raises RecipeError naming the key."""
    before = border.plan
    given, had = settings.model_dump(mode="json"), before.folder.config.settings["plan"]
    for name in _FIXED:
        if given.get(name) != had.get(name):
            raise RecipeError(
                f"plan.{name}: is {given.get(name)!r}, and {had.get(name)!r} in {before.folder.path}, which this plan "
                f"continues: what was seen could come again; leave it, or plan without {_WHERE}"
            )
    if vocabulary.fingerprint != before.description["vocabulary_fingerprint"]:
        raise RecipeError(
            f"plan: the sources were tokenized with {vocabulary.name} ({vocabulary.size} ids), and "
            f"{before.folder.path}, which this plan continues, with another vocabulary; tokenize with that one"
        )
    if "epochs" not in before.shards.columns:
        raise RecipeError(f"{_WHERE}: {before.folder.path} was written by an older tokenmill, which kept no passes")


def continued_summary(plan: Snapshot, border: Border, shards: pl.DataFrame) -> dict[str, Any]:
    """Say what a plan goes on from and how many documents it took over, for its description; `shards` are its own."""
    carried = plan.totals.get(CARRIED, 0)
    return {
        **border.to_json(),
        "carried_documents": carried,
        "new_documents": plan.totals["documents"] - carried,
        "gone_documents": plan.counts.dropped.get(GONE, 0),
        "unfinished": unfinished_sources(border, shards),
    }


def _parted(asked: str) -> tuple[str, str | None]:
    """Split a text at its last `@`; that of a URL's user is none."""
    name, _, step = asked.rpartition("@")
    return (asked, None) if not name or "/" in step else (name.rstrip("/"), step)


def _relative(store: Store, name: str) -> str:
    root = store.url.removeprefix("file://")
    given = name.removeprefix("file://").rstrip("/")
    return given.removeprefix(root).strip("/") if given.startswith(f"{root}/") else given


def _run_and_step(store: Store, path: str) -> tuple[str | None, int | None]:
    """Return the run that a path means, and the step of the checkpoint; Nones where it means none."""
    parts = path.removeprefix("checkpoints/").split("/")
    if path.startswith("plans/") or _DIGITS.fullmatch(path) or len(parts) > 2:
        return None, None
    if parts[0] not in store.folders("checkpoints"):
        return None, None
    number = parts[1].removeprefix("step-") if len(parts) == 2 else ""
    return parts[0], int(number) if number.isdigit() else None


def _plan_at(store: Store, path: str, phase: str) -> Plan:
    try:
        return open_plan(store, path)
    except ManifestError as error:
        there = ", ".join(plan_paths(store, phase)) or "none"
        runs = ", ".join(store.folders("checkpoints")) or "none"
        raise RecipeError(f"{_WHERE}: {path}: {error}; plans of {phase}: {there}; runs: {runs}") from error


def _step_number(asked: str, step: str, plan: Plan | None, size: int = 1) -> int:
    if step == "end" and plan is not None:
        return first_step(plan.description) - (-plan.num_packs // size)
    if not step.isdecimal():
        raise RecipeError(f"{_WHERE}: {asked}: the step is a number{' or end' if plan else ''}, found {step!r}")
    return int(step)


def _check_step(border: Border, asked: str, train: TrainSettings) -> None:
    """Refuse a step before the plan's first or behind the run's last."""
    first = first_step(border.plan.description)
    last = train.steps or first + math.ceil(train.epochs * border.steps_per_epoch)
    if not first <= border.step <= last:
        where = f"train.steps {train.steps}" if train.steps else f"train.epochs {train.epochs:g}"
        raise RecipeError(
            f"{_WHERE}: {asked}: {border.plan.folder.path} has steps {first} to {last} ({where}, "
            f"{border.plan.num_packs:,} packs, {border.global_packs} a step)"
        )


def _check_run(store: Store, border: Border, train: TrainSettings) -> None:
    """Refuse another number of packs a step than the recipe's run had on this plan."""
    for step in checkpoints_of(store, train.run):
        state = loader_state(store, train.run, step)
        if state["plan_id"] == border.plan.plan_id:
            _check_size(state, train)


def _check_size(state: Mapping[str, Any], train: TrainSettings) -> None:
    if state["global_packs"] != train.global_packs_per_step:
        raise RecipeError(
            f"train.global_packs_per_step: is {train.global_packs_per_step}, and the run trained with "
            f"{state['global_packs']}: a step would be another place in the plan; set it to {state['global_packs']}"
        )


def _border_of_run(store: Store, run: str, step: int | None, train: TrainSettings) -> Border:
    there = checkpoints_of(store, run)
    if not there or (step is not None and step not in there):
        told = f"at step {step}; there are {', '.join(map(str, there))}" if there else "that is complete"
        raise RecipeError(f"{_WHERE}: checkpoints/{run} has no checkpoint {told}")
    state = loader_state(store, run, there[-1] if step is None else step)
    _check_size(state, train)
    plan = _plan_at(store, f"plans/{state['phase']}/{short(state['plan_id'])}", state["phase"])
    border = Border(plan=plan, step=first_step(plan.description), global_packs=state["global_packs"])
    done = state["epoch"] * border.steps_per_epoch + state["next_pack"] // state["global_packs"]
    return Border(plan=plan, step=border.step + done, global_packs=border.global_packs)


def checkpoints_of(store: Store, run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, ascending."""
    names = [name for name in store.folders(f"checkpoints/{run}") if name.startswith("step-")]
    return sorted(int(n[5:]) for n in names if store.exists(f"checkpoints/{run}/{n}/{CHECKPOINT_RECORD}"))


def loader_state(store: Store, run: str, step: int) -> dict[str, Any]:
    """Return the loader's state in a checkpoint; raises ManifestError where it has none."""
    name = f"checkpoints/{run}/step-{step:08d}/{CHECKPOINT_RECORD}"
    try:
        state = json.loads(store.read_bytes(name))["loader"]
        return {key: state[key] for key in ("plan_id", "phase", "epoch", "next_pack", "global_packs")}
    except (ValueError, KeyError, TypeError, StorageError) as error:
        raise ManifestError(f"{name}: does not say which plan it was trained on ({error})") from error
