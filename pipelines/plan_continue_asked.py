"""What `plan.continue_from` comes to for a recipe as it is now.

A run that is named without a step is where it stands. Where it stands on a plan that asks for nothing else than the
recipe does, that plan goes on: naming the run again, to resume it, makes no new plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.plan_border import Border
from tokenmill.manifests.plans import Plan, open_plan, plan_paths
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.plan import plan_folder
from tokenmill.pipelines.plan_continue import border_of, names_step, step_of
from tokenmill.pipelines.plan_exclusion import read_exclusion
from tokenmill.settings_train import PlanSettings, TrainSettings


def asked_plan(
    store: Store,
    snapshots: Sequence[Snapshot],
    settings: PlanSettings,
    train: TrainSettings,
    storage: Mapping[str, Any] | None = None,
) -> Border | Plan | None:
    """Return the place from which a phase's plan goes on; None where it begins anew.

    A finished plan is returned as it is where a run stands on it and the recipe asks for nothing else, or where it took
    over from one that is gone and is just what the recipe asks for: a takedown may have removed the other. Raises as
    `border_of`.
    """
    if settings.continue_from is None:
        return None
    exclusion = read_exclusion(settings, storage)

    def id_of(continues: Mapping[str, Any] | None) -> str:
        return plan_folder(store, snapshots, settings, exclusion, continues).config.digest

    try:
        border = border_of(store, settings.continue_from, settings.phase, train)
    except RecipeError:
        finished = _finished_plan(store, settings, id_of)
        if finished is None:
            raise
        return finished
    if names_step(settings.continue_from):
        return border
    is_asked = id_of(border.plan.folder.config.settings.get("continues")) == border.plan.plan_id
    return border.plan if is_asked else border


def _finished_plan(
    store: Store, settings: PlanSettings, id_of: Callable[[Mapping[str, Any] | None], str]
) -> Plan | None:
    step = step_of(settings.continue_from or "")
    for path in plan_paths(store, settings.phase):
        plan = open_plan(store, path)
        continues = plan.folder.config.settings.get("continues")
        if continues and step in (None, continues["step"]) and id_of(continues) == plan.plan_id:
            before = plan.description["continues"]["folder"]
            return None if store.exists(f"{before}/plan.json") else plan
    return None
