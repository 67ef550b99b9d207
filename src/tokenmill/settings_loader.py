"""What a recipe may say under `train.loader`: how the bytes of packs come to a rank."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class LoaderSettings(BaseModel):
    """How a rank gets the bytes of its packs; nothing here changes what it reads."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)

    threads: int = Field(default=2, ge=0, le=256, description="that read and assemble steps ahead; 0 = none ahead")
    read_ahead_steps: int = Field(default=4, ge=1, description="steps that are made before they are asked for, at most")
    read_ahead_bytes: int = Field(
        default=2**30, ge=2**20, description="of those steps' arrays in memory, at most; one step always is"
    )
    connections: int = Field(default=16, ge=1, le=256, description="requests to a remote store at the same time")
    cache: str | None = Field(
        default=None, description="folder on a local disk that keeps shards of a remote store, for all ranks of a node"
    )
    cache_bytes: int = Field(default=100 * 10**9, ge=1, description="what that folder may hold")
    check_digests: bool = Field(
        default=False, description="compare each shard's sha256 with the plan's before it is used"
    )
    memory_map: bool = Field(
        default=False,
        description="map local and cached shards instead of reading them: faster, but a shard that is cut off while it "
        "is used, or a fault of the disk, ends the rank with SIGBUS",
    )
    timeout_s: float = Field(default=600.0, gt=0, description="how long a step may be waited for")

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache or "").expanduser().absolute()
