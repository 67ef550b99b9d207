"""What a recipe may say under `tokenize`: vocabulary, vision tokenizer, sizes, masking, and what long clips become.

Part of the spine, like `settings_train`: validated in well under two seconds, without torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, protected_namespaces=())


class VisionSettings(BaseModel):
    """A vision tokenizer by name, folder or hub name; further keys are its options."""

    model_config = ConfigDict(defer_build=True, extra="allow", frozen=True)

    name: str


class Area(Section):
    """The size of a picture or frame that is tokenized, in pixels after resizing."""

    min_area: Positive = 512 * 512
    max_area: Positive = 512 * 512
    max_aspect: float = Field(default=5.0, ge=1)


class ClipSettings(Area):
    """How a clip is tokenized, and what becomes of one whose document would be too long (docs/emu3_video.md)."""

    fps: float = Field(default=24.0, gt=0, description="frames a second taken; never more than the clip has")
    long: Literal["sub_clips", "lower_fps", "runs", "first"] = Field(
        default="lower_fps",
        description="sub_clips: scenes are cut at split (filter.video.scenes), what is still too long is refused; "
        "lower_fps: fewer frames a second; runs: the plan makes several documents; first: the clip's first max_seconds",
    )
    max_ids: Positive = Field(default=131_072, description="of a clip's assembled document: the context")
    min_fps: float = Field(default=1.0, gt=0, description="lower_fps goes no lower, then refuses")
    max_seconds: float | None = Field(default=None, gt=0, description="first only")

    @model_validator(mode="after")
    def _fitting_together(self) -> ClipSettings:
        if (self.max_seconds is not None) != (self.long == "first"):
            raise ValueError("long: first needs max_seconds, and only that takes it")
        if self.min_fps > self.fps:
            raise ValueError(f"min_fps of {self.min_fps:g} is more than fps, {self.fps:g}")
        return self


class DocumentSettings(Area):
    """How pages and conversations are tokenized (docs/documents.md): the area is that of each of their pictures."""

    broken_pictures: Literal["leave_out", "fail"] = Field(
        default="leave_out",
        description="what becomes of a page with a picture that is broken, too long or too small; a conversation fails",
    )
    max_pictures: Positive = Field(default=100, description="pages and conversations with more are refused")
    between_texts: str = Field(
        default="\n", description="stands between two texts of a page or turn that follow each other"
    )


class MaskSettings(Section):
    """Personal data that is replaced in every text before it is tokenized: `<EMAIL>`, `<PHONE>`, …."""

    kinds: tuple[Literal["credentials", "secret", "email", "iban", "card", "ip", "phone"], ...] = ()
    phone_regions: tuple[str, ...] = Field(
        default=("US",), description="countries whose numbers are known without a country code"
    )


class TokenizeSettings(Section):
    """Vocabulary, vision tokenizer, and what is masked in texts and captions."""

    vocabulary: dict[str, Any] = Field(default_factory=lambda: {"name": "bytes"})
    vision: VisionSettings = Field(default_factory=lambda: VisionSettings(name="scenes"))
    mask: MaskSettings = Field(default_factory=MaskSettings)
    image: Area = Field(default_factory=Area)
    video: ClipSettings = Field(default_factory=ClipSettings)
    document: DocumentSettings = Field(default_factory=DocumentSettings)
