"""What a recipe may say under `train.wandb` and `train.trackio`: where else a run's metrics go."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Settings(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class WandbSettings(_Settings):
    """Weights & Biases; its own WANDB_API_KEY and `wandb login` say who is writing."""

    project: str = Field(default="tokenmill", min_length=1)
    name: str | None = Field(default=None, description="of the run there; absent: train.run")
    entity: str | None = Field(
        default=None, description="user or team; absent: the default one of whoever is logged in"
    )
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: into the run's folder, for `wandb sync` later"
    )


class TrackioSettings(_Settings):
    """trackio: a local database in the run's folder, or a Space of the hub."""

    project: str = Field(default="tokenmill", min_length=1)
    name: str | None = Field(default=None, description="of the run there; absent: train.run")
    space: str | None = Field(default=None, description="name of a Space that shows it; absent: `trackio show` here")
