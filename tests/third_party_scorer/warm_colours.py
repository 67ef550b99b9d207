"""How warm the colours of a picture are, and how they flicker in a clip: scorers as another package would have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from tokenmill.filters.scorer import Clip, Columns, Picture, View, fingerprint_of

LOOKS_AT = View(longest_side_px=128)


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """Mean of red less blue (8-bit levels), times `gain`."""

    gain: float = 1.0

    name: ClassVar = "warmth"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 5
    views: ClassVar[tuple[View, ...]] = (LOOKS_AT,)
    columns: ClassVar = {"warmth": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures one by one."""
        images = [picture.view(LOOKS_AT).astype(float) for picture in batch]
        return {"warmth": [self.gain * float((image[..., 0] - image[..., 2]).mean()) for image in images]}


@dataclass(frozen=True, kw_only=True)
class Flicker:
    """How far the mean level of a clip's frames strays (8-bit levels)."""

    name: ClassVar = "flicker"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 1
    columns: ClassVar = {"flicker": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        """Score clips one by one."""
        return {"flicker": [float(clip.frames.mean(axis=(1, 2, 3)).std()) for clip in batch]}
