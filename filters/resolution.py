"""The sizes every other rule leans on; costs nothing, so gates of costly scorers name these columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from tokenmill.filters.scorer import Columns, Picture, View, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Width, height, the shorter of both, and longer over shorter side, upright; of a clip those of its film."""

    name: ClassVar = "resolution"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 1
    views: ClassVar[tuple[View, ...]] = ()
    columns: ClassVar = {
        "width_px": pl.Int32(),
        "height_px": pl.Int32(),
        "min_side_px": pl.Int32(),
        "aspect": pl.Float32(),
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Read the sizes of pictures."""
        sizes = [(picture.source_height_px, picture.source_width_px) for picture in batch]
        return {
            "width_px": [width for _, width in sizes],
            "height_px": [height for height, _ in sizes],
            "min_side_px": [min(size) for size in sizes],
            "aspect": [max(size) / min(size) for size in sizes],
        }
