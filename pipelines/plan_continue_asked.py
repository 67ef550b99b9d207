"""What `plan.continue_from` comes to for a recipe as it is now.

A run that is named without a step is where it stands. Where it stands on a plan that asks for nothing else than the
recipe does, that plan goes on: naming the run again, to resume it, makes no new plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.manifests.plan_border import Border, border_before
from tokenmill.manifests.plans import Plan, open_plan, plan_paths
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.plan import plan_folder
from tokenmill.pipelines.plan_continue import border_of, names_step, step_of
from tokenmill.settings_train import PlanSettings, TrainSettings


def finished_plan(store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings) -> Plan | None:
    """Return the finished plan of just these snapshots and settings, where the plan that it continues is gone.

    A takedown may have removed that one since; what took over from it can be trained on all the same.
    """
    step = step_of(settings.continue_from or "")
    for path in plan_paths(store, settings.phase):
        plan = open_plan(store, path)
        continues = plan.folder.config.settings.get("continues")
        if continues and (step is None or step == continues["step"]):
            same = plan_folder(store, snapshots, settings, continues)
            if same.config.digest == plan.plan_id and not store.exists(
                f"{plan.description['continues']['folder']}/plan.json"
            ):
                return plan
    return None


def asked_border(
    store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings, train: TrainSettings
) -> Border | None:
    """Return the place from which a phase's plan goes on; None where it begins anew. Raises as `border_of`."""
    if settings.continue_from is None:
        return None
    border = border_of(store, settings.continue_from, settings.phase, train)
    if names_step(settings.continue_from):
        return border
    before = border_before(border.plan)
    same = plan_folder(store, snapshots, settings, before.identity() if before else None)
    return before if same.config.digest == border.plan.plan_id else border
