"""The plans of a recipe's phases, planned together, each going on from where the recipe says."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.manifests.plan_border import Border
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.plan import run_plans
from tokenmill.pipelines.plan_continue_asked import asked_plan
from tokenmill.recipe import Recipe
from tokenmill.settings_train import PlanSettings


def plan_phases(
    store: Store, snapshots: Sequence[Snapshot], recipe: Recipe, phases: Sequence[str], options: RunOptions
) -> dict[str, Plan]:
    """Return the plans of some phases by name, bringing them up to date if the options allow it."""
    settings = [_settings_of(recipe, phase) for phase in phases]
    trained = {train.phase: train for train in recipe.train.resolved().values()}
    asked = [
        asked_plan(store, snapshots, one, trained.get(one.phase, recipe.train.last), recipe.storage) for one in settings
    ]
    found = {phase: one for phase, one in zip(phases, asked, strict=True) if isinstance(one, Plan)}
    borders = {phase: one for phase, one in zip(phases, asked, strict=True) if isinstance(one, Border)}
    missing = [one for one in settings if one.phase not in found]
    planned = run_plans(store, snapshots, missing, options, recipe.storage, borders)
    found |= dict(zip((one.phase for one in missing), planned, strict=True))
    return {phase: found[phase] for phase in phases}


def _settings_of(recipe: Recipe, phase: str) -> PlanSettings:
    """Return a phase's settings; `continue_from` beside the phases is said of the one that is trained on."""
    settings = recipe.plan.resolved()[phase]
    if phase == recipe.train.last.phase and settings.continue_from is None:
        return settings.model_copy(update={"continue_from": recipe.plan.continue_from})
    return settings
