"""What a recipe may say under `train` about losses that go wrong: which are refused, and what is done then."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["stop", "skip", "roll_back"]


class _Settings(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class SpikeSettings(_Settings):
    """When a loss is a spike: above `factor` times the median of the last `window` losses that were none."""

    factor: float = Field(default=2.0, gt=1.0, description="a loss above so many times the median is a spike")
    window: int = Field(default=50, ge=2, description="losses the median is of; no spike before so many are known")


class GuardSettings(_Settings):
    """What becomes of a step whose loss or gradient is no number, or whose loss is a spike.

    `stop` ends the run with an error, `skip` goes on as if the step had not been, `roll_back` goes back to the newest
    checkpoint and leaves the steps since then out.
    """

    on_nan: Action = Field(default="stop", description="loss or gradient that is no finite number")
    spike: SpikeSettings | None = Field(default=None, description="absent = no loss is too high")
    on_spike: Action = Field(default="skip", description="a loss above the limit")
    leave_out: int | None = Field(
        default=None,
        ge=1,
        description="steps up to the bad one left out after a roll back; absent = since the checkpoint",
    )
    patience: int = Field(
        default=10, ge=1, description="bad steps in a row, or returns to one checkpoint, before the run ends"
    )

    @property
    def actions(self) -> set[Action]:
        """Everything that may be done."""
        return {self.on_nan} | ({self.on_spike} if self.spike else set())
