"""What a launcher tells the ranks, and what they tell back: two small JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokenmill.settings_train import TrainSettings


class TrainJob(BaseModel):
    """One training run, ready to start on any machine that reaches the store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="URL or path of the store")
    options: dict[str, Any] = Field(default_factory=dict, description="of the store's file system")
    plan: str = Field(description="folder of the plan, relative to the root")
    evaluation_plan: str | None = Field(
        default=None, description="folder of the plan to evaluate on, relative to the root"
    )
    settings: TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a launch of a run ended: at which step, and whether that is the last one.

    `stopped` is set when a signal ended it early, after saving. `export` is the exported model, relative to the root,
    of a run that is finished.
    """

    step: int
    total_steps: int
    stopped: bool
    export: str | None

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainResult:
        return cls(**value)
