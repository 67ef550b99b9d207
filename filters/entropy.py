"""How much is going on in a picture, as the Shannon entropy of its luma: blank pages, gradients and logos are low.

Counted at half the view that every picture is decoded to anyway (256 px or more).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from tokenmill.filters.picture import BASE, Luma
from tokenmill.filters.scorer import Columns, Picture, View, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Bits a pixel of the 256-level histogram of luma, 0 (one grey) to 8 (all alike); photographs have 6 to 7.8."""

    name: ClassVar = "entropy"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 1
    views: ClassVar[tuple[View, ...]] = (BASE,)
    columns: ClassVar = {"entropy_bits": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures one by one."""
        return {"entropy_bits": [_entropy(picture.grey(halved=True)) for picture in batch]}


def _entropy(luma: Luma) -> float:
    import cv2

    counts = cv2.calcHist([luma], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    shares = counts[counts > 0] / luma.size
    return float(abs((shares * np.log2(shares)).sum()))
