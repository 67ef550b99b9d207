"""What a recipe may say under `train.evaluation`: on what, how often and on how much a run is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field


class EvaluationSettings(BaseModel):
    """Losses on packs that nothing is learned from, while training."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)

    phase: str = Field(description="the plan to evaluate on: a phase with part: held_out")
    every: int = Field(default=500, ge=1, description="steps; the last one is always evaluated")
    packs: int | None = Field(default=64, ge=1, description="the first so many of the plan; null = all")


class PlannedPhase(Protocol):
    """What has to be known of a phase's plan."""

    @property
    def part(self) -> str: ...

    @property
    def held_out(self) -> float: ...

    @property
    def context(self) -> int: ...


def check_evaluation(asked: EvaluationSettings, plans: Mapping[str, PlannedPhase], trained: str) -> None:
    """Refuse to evaluate a run on the phase `trained` on what it may be trained on; raises ValueError.

    A phase that is not planned is somebody else's matter if it is the one that is trained on.
    """
    where = "train.evaluation.phase:"
    if asked.phase not in plans:
        raise ValueError(f"{where} no phase {asked.phase!r} in plan.phases; known: {', '.join(plans)}")
    held_out, training = plans[asked.phase], plans.get(trained)
    if held_out.part != "held_out" or not held_out.held_out:
        raise ValueError(
            f"{where} plan.phases.{asked.phase} is of part {held_out.part} and holds out {held_out.held_out:g}; it "
            "needs part: held_out and plan.held_out above 0"
        )
    if training is None:
        return
    if training.part == "training" and training.held_out < held_out.held_out:
        raise ValueError(
            f"{where} plan.phases.{asked.phase} holds out {held_out.held_out:g} of the samples, {trained} only "
            f"{training.held_out:g}: it would be evaluated on what is trained on"
        )
    if training.context < held_out.context:
        raise ValueError(
            f"{where} plan.phases.{asked.phase} has packs of {held_out.context} ids, {trained} of {training.context}; "
            "evaluate on packs that are no longer"
        )
