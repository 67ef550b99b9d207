"""Blur, as the variance of the Laplacian; at a fixed size, because the figure falls when a picture is enlarged.

Pictures are shrunk to a longest side of 512 px (never enlarged), so one threshold serves a photograph of 12 megapixels
and its thumbnail. The Laplacian is taken in whole numbers: the result does not depend on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.scorer import Columns, Image, fingerprint_of
from tokenmill.filters.shrink import shrink


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """Variance of the 3 x 3 Laplacian of luma: below about 100 at 512 px a photograph looks blurred."""

    longest_side_px: Annotated[int, Field(ge=16)] = 512

    name: ClassVar = "sharpness"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 64
    columns: ClassVar = {"sharpness": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Image]) -> Columns:
        """Score HWC images one by one."""
        return {"sharpness": [_laplacian_variance(shrink(image, self.longest_side_px)) for image in batch]}


def _laplacian_variance(image: Image) -> float:
    import cv2

    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return float(deviation[0, 0]) ** 2
