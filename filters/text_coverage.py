"""The share of a picture that text covers: half of Emu3's rescue rule, and a filter of its video recipe (EMU3.md §1).

The most expensive scorer by far, so gate it (`when:`) behind the others. Milliseconds for a 512² picture on one core,
and the share of text lines found in it by the height of their letters, for some caps of the longest side:

    cap   ms    8 px  10 px  12 px  16 px  24 px
    256   12    .20   .57    .70    .73    1.0
    320   20    .43   .80    .87    1.0    1.0
    480   46    .83   1.0    1.0    1.0    1.0     the default
    640   58    .87   1.0    1.0    1.0    1.0     (a 512² picture stays as it is)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.scorer import Columns, Image, Picture, View, fingerprint_of
from tokenmill.filters.shrink import shrink
from tokenmill.filters.text_detector import text_boxes, weights_digest


@dataclass(frozen=True, kw_only=True)
class TextCoverage:
    """Area of the union of text boxes over the area of the picture (boxes are about 1.5 times the letters' area).

    Args:
        longest_side_px: pictures are shrunk to this before; text smaller than 10 px after shrinking is missed.
    """

    longest_side_px: Annotated[int, Field(ge=32)] = 480

    name: ClassVar = "text_coverage"
    version: ClassVar = 2
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 16  # one by one all the same: batching gains nothing on a CPU
    columns: ClassVar = {"text_coverage": pl.Float32(), "text_boxes": pl.Int32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=weights_digest())

    @property
    def views(self) -> tuple[View, ...]:
        return (View(longest_side_px=self.longest_side_px),)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures one by one."""
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[Picture]) -> Sequence[Image]:
        """Shrink pictures to `longest_side_px`, HWC."""
        return [shrink(picture.view(*self.views), self.longest_side_px) for picture in batch]

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
