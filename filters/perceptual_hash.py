"""64-bit perceptual hash: near copies (resized, recompressed, a little brighter) differ in few bits.

The same construction as `imagehash.phash` (32 x 32 luma, low 8 x 8 of its DCT, above or below the median), by OpenCV:
8.6 times faster (0.14 ms against 1.17 ms at 512² on one core) and within 2 bits of it on 27 of 29 pictures. Pictures
without structure have no hash (null): their bits would be rounding noise, and a white page is no copy of a black one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from pydantic.dataclasses import dataclass

from tokenmill.filters.picture import BASE, Luma
from tokenmill.filters.scorer import Columns, Picture, View, fingerprint_of

_SIDE_PX, _LOW = 32, 8
_MIDDLE = (_LOW**2 // 2 - 1, _LOW**2 // 2)
_FLAT = 1.0  # standard deviation of the 32 x 32 luma, in 8-bit levels


@dataclass(frozen=True, kw_only=True)
class PerceptualHash:
    """The hash as an unsigned 64-bit number, first row of the DCT in the high bits; compare by Hamming distance."""

    name: ClassVar = "perceptual_hash"
    version: ClassVar = 2
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 1
    views: ClassVar[tuple[View, ...]] = (BASE,)
    columns: ClassVar = {"phash": pl.UInt64()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Hash pictures one by one."""
        return {"phash": [perceptual_hash(picture.grey(halved=True)) for picture in batch]}


def perceptual_hash(luma: Luma) -> int | None:
    """Hash one picture's luma (HW); None when it has no structure to hash."""
    import cv2

    small = cv2.resize(luma, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    if cv2.meanStdDev(small)[1][0, 0] < _FLAT:
        return None
    low = cv2.dct(small.astype(np.float32))[:_LOW, :_LOW].ravel()
    bits = low > np.partition(low, _MIDDLE)[list(_MIDDLE)].mean()  # the median, in a tenth of numpy's own time
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
