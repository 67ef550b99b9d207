"""A run that goes on with another plan: the loader's steps are the plan's own, the run's go on counting.

A plan that continues another takes over at one step of the run, and only there: the plan before would have given other
samples from then on, so a checkpoint of any other step is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan

_PLACE = ("phase", "epoch", "next_pack", "global_packs")


def takes_over(plan: Plan, state: Mapping[str, Any]) -> bool:
    """Say whether a loader's state stands in the plan before, at exactly the step where this one takes over.

    Raises RecipeError where it stands elsewhere in the plan before, naming both places.
    """
    before = plan.description.get("continues")
    if not before or state.get("plan_id") != before["plan"]:
        return False
    differing = [f"{name} {state.get(name)!r} ≠ {before[name]!r}" for name in _PLACE if state.get(name) != before[name]]
    if differing:
        raise RecipeError(
            f"train: {plan.folder.path} goes on from step {before['step']} of {before['folder']}, and the checkpoint "
            f"stands elsewhere in it: {', '.join(differing)}; go on from a checkpoint of step {before['step']}, or "
            "plan again with plan.continue_from set to the run"
        )
    return True


def check_begun(plan: Plan, run: str) -> None:
    """Refuse to begin a run with a plan that goes on from another; raises RecipeError."""
    before = plan.description.get("continues")
    if before and before["step"] > 0:
        raise RecipeError(
            f"train: {plan.folder.path} goes on from step {before['step']} of {before['folder']}, and run {run} has no "
            "checkpoint; set train.run to the run that trained on it"
        )
