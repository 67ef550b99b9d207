"""What a recipe may say under `train.evaluation`: on what, how often and on how much a run is evaluated."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationSettings(BaseModel):
    """Losses on packs that nothing is learned from, while training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str = Field(description="the plan to evaluate on: a phase with part: held_out")
    every: int = Field(default=500, ge=1, description="steps; the last one is always evaluated")
    packs: int | None = Field(default=64, ge=1, description="the first so many of the plan; null = all")
