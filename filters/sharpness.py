"""Blur, as the variance of the Laplacian; at a fixed size, because the figure falls when a picture is enlarged.

Pictures are shrunk to a longest side of 512 px (never enlarged), so one threshold serves a photograph of 12 megapixels
and its thumbnail, and the view is the one that the other cheap scorers have decoded already. `longest_side_px: null`
is the exact figure of every pixel, for 2.2 ms more a megapixel. The Laplacian is taken in whole numbers: the result
does not depend on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.picture import BASE, Luma, luma_of
from tokenmill.filters.scorer import Columns, Picture, View, fingerprint_of
from tokenmill.filters.shrink import reduce_to


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """Variance of the 3 x 3 Laplacian of luma: below about 100 at 512 px a photograph looks blurred.

    Args:
        longest_side_px: pictures are shrunk to this before; None takes the luma of every pixel.
    """

    longest_side_px: Annotated[int, Field(ge=16)] | None = 512

    name: ClassVar = "sharpness"
    version: ClassVar = 2
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 1
    columns: ClassVar = {"sharpness": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    @property
    def views(self) -> tuple[View, ...]:
        side = self.longest_side_px
        return (View(kind="luma") if side is None else View(longest_side_px=side),)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures one by one."""
        return {"sharpness": [_laplacian_variance(self._luma(picture)) for picture in batch]}

    def _luma(self, picture: Picture) -> Luma:
        if self.longest_side_px is None:
            return picture.view(*self.views)
        is_base = self.longest_side_px == BASE.longest_side_px
        return _scaled(picture.grey() if is_base else luma_of(picture.view(*self.views)), self.longest_side_px)


def _scaled(luma: Luma, longest_side_px: int) -> Luma:
    """Bring luma to a longest side: blocks averaged, then interpolated by less than 2 (bit-exact on any machine)."""
    import cv2

    luma = reduce_to(luma, longest_side_px)
    height, width = luma.shape
    scale = longest_side_px / max(height, width)
    if scale >= 1:
        return luma
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled: Luma = cv2.resize(luma, size, interpolation=cv2.INTER_LINEAR_EXACT)  # area averaging takes 5 times as long
    return scaled


def _laplacian_variance(luma: Luma) -> float:
    import cv2

    edges = cv2.Laplacian(luma, cv2.CV_16S)
    mean = cv2.sumElems(edges)[0] / edges.size  # sums of whole numbers, exact; a third of meanStdDev's time
    return float(max(cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - mean**2, 0.0))
