"""How colourful a picture is, and whether it is monochrome: half of Emu3's rescue rule (EMU3.md §1).

Everything follows from the pixels' mean and covariance, whose sums are whole numbers below 2^53: exact in float64, so
the same on any number of threads. A sepia or blue-toned picture is monochrome too, so the flag asks how far colours
stray from their one main axis and not how saturated they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.scorer import Columns, Image, Picture, View, fingerprint_of
from tokenmill.filters.shrink import reduce_to

_OPPONENTS = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])  # red-green, yellow-blue

_CHUNK_PIXELS = 8192  # as float64 they fit into a core's cache


@dataclass(frozen=True, kw_only=True)
class Colourfulness:
    """Hasler–Süsstrunk colourfulness (Measuring colourfulness in natural images, 2003, eq. 1 with M^(3)).

    Args:
        longest_side_px: pictures are averaged to this (to less than twice as much) before; on 240 pictures of a
            megapixel the figure keeps its rank (0.9998) down to here.
        monochrome_below: `colour_spread` (8-bit levels) below which a picture counts as monochrome; grey ones have 0,
            sepia JPEGs 2 to 10 (median 5), the palest of 12 colour photographs 9.4.
    """

    longest_side_px: Annotated[int, Field(ge=16)] = 128
    monochrome_below: Annotated[float, Field(ge=0)] = 6.0

    name: ClassVar = "colourfulness"
    version: ClassVar = 2
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 1
    columns: ClassVar = {"colourfulness": pl.Float32(), "colour_spread": pl.Float32(), "is_monochrome": pl.Boolean()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(longest_side_px=max(512, self.longest_side_px)),)  # 512: everybody's view

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures one by one."""
        images = [picture.view(*self.views) for picture in batch]
        moments = [_moments(reduce_to(image, self.longest_side_px)) for image in images]
        spreads = [_spread(covariance) for _, covariance in moments]
        return {
            "colourfulness": [_colourfulness(*moment) for moment in moments],
            "colour_spread": spreads,
            "is_monochrome": [spread < self.monochrome_below for spread in spreads],
        }


def _moments(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (3) and covariance (3 x 3) of the RGB values."""
    import cv2

    pixels = image.reshape(-1, 3)
    total, products = np.array(cv2.sumElems(image)[:3]), np.zeros((3, 3))
    for start in range(0, len(pixels), _CHUNK_PIXELS):
        chunk = pixels[start : start + _CHUNK_PIXELS].astype(np.float64)
        products += chunk.T @ chunk
    mean = total / len(pixels)
    return mean, products / len(pixels) - np.outer(mean, mean)


def _colourfulness(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    variance = np.trace(_OPPONENTS @ covariance @ _OPPONENTS.T)
    return float(np.sqrt(max(variance, 0.0)) + 0.3 * np.linalg.norm(_OPPONENTS @ mean))


def _spread(covariance: NDArray[np.float64]) -> float:
    """Return the standard deviation across the main axis of the colours."""
    return float(np.sqrt(max(np.linalg.eigvalsh(covariance)[:2].sum(), 0.0)))
