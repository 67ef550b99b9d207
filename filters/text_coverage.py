"""The share of a picture that text covers: half of Emu3's rescue rule, and a filter of its video recipe (EMU3.md §1).

The most expensive scorer by far, so gate it (`when:`) behind the others. Milliseconds for a 512² picture on one core,
and the share of text lines found in it by the height of their letters, for some caps of the longest side:

    cap   ms    8 px  10 px  12 px  16 px  24 px
    256   12    .20   .57    .70    .73    1.0
    320   20    .43   .80    .87    1.0    1.0
    480   46    .83   1.0    1.0    1.0    1.0     the default
    640   58    .87   1.0    1.0    1.0    1.0     (a 512² picture stays as it is)

A scan of a page has more pixels than that, so the cap grows with the picture: none is shrunk more than `max_shrink`
times, up to 960 pixels, where it takes 4 times as long as at 480. What boxes cover of a page of A4 at 300
dots an inch (8.7 megapixels) by the size of its letters, and CPU-milliseconds, decoding included:

    max_shrink  30 px  36 px  42 px  50 px   ms
    none         .87*   1.0*    0     .61   200     * one block: the recipe's rescue takes it for a texture
    6            .95*    0     .60    .61   270
    5            .60    .61    .59    .61   380     the default; 4000 x 3000: 510
    4            .59    .60    .58    .58   510
    3            .59    .60    .57    .54   700
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.scorer import Columns, Image, Picture, View, fingerprint_of
from tokenmill.filters.shrink import shrink
from tokenmill.filters.text_detector import text_boxes, weights_digest

_MOST_SIDE_PX = 960


@dataclass(frozen=True, kw_only=True)
class TextCoverage:
    """Area of the union of text boxes over the area of the picture (boxes are about 1.5 times the letters' area).

    Args:
        longest_side_px: pictures are shrunk to this before; text smaller than 10 px after shrinking is missed.
        max_shrink: larger pictures are shrunk no more than so many times, until they have 960 pixels; null: all alike.
    """

    longest_side_px: Annotated[int, Field(ge=32)] = 480
    max_shrink: Annotated[int, Field(ge=1)] | None = 5

    name: ClassVar = "text_coverage"
    version: ClassVar = 3
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 16  # one by one all the same: batching gains nothing on a CPU
    columns: ClassVar = {"text_coverage": pl.Float32(), "text_boxes": pl.Int32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=weights_digest())

    @property
    def views(self) -> tuple[View, ...]:
        most = self.max_shrink or 8
        return (View(longest_side_px=self.longest_side_px, max_scale=max(n for n in (1, 2, 4, 8) if n <= most)),)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures one by one."""
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[Picture]) -> Sequence[Image]:
        """Shrink pictures to their caps, HWC."""
        return [shrink(picture.view(*self.views), self._cap_px(picture)) for picture in batch]

    def _cap_px(self, picture: Picture) -> int:
        if self.max_shrink is None:
            return self.longest_side_px
        longest = max(picture.width_px, picture.height_px)
        return max(self.longest_side_px, min(_MOST_SIDE_PX, math.ceil(longest / self.max_shrink)))

    def score_prepared(self, batch: Sequence[Image]) -> Columns:
        """Score shrunken images."""
        scored = [_covered(image) for image in batch]
        return {"text_coverage": [share for share, _ in scored], "text_boxes": [boxes for _, boxes in scored]}


def _covered(image: Image) -> tuple[float, int]:
    import cv2

    boxes, shape = text_boxes(image)
    covered = np.zeros(shape, np.uint8)
    for box in boxes:
        cv2.fillPoly(covered, [box], 1)
    return float(covered.mean()), len(boxes)
