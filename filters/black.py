"""Black and blank frames: fades, leader, lost signal, a lens cap.

A frame is black where nearly all of it is dark, which a night shot with a lamp in it is not; blank where it hardly
varies, in whatever colour. Blankness is looked at on 32 x 32 averages, so that noise does not make a wall a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip import Clip
from tokenmill.filters.scorer import Columns, fingerprint_of

_SIDE_PX = 32


@dataclass(frozen=True, kw_only=True)
class Black:
    """The share of a clip's sampled frames that are black, and the share that are blank (black ones mostly are both).

    Args:
        black_level: luma (0 to 255) up to which a pixel is dark; 16 also takes in black of a wrongly declared range.
        black_pixels: share of dark pixels that makes a frame black.
        blank_deviation: standard deviation, of each colour, up to which a frame is blank, in levels.
    """

    black_level: Annotated[int, Field(ge=0, le=255)] = 16
    black_pixels: Annotated[float, Field(gt=0, le=1)] = 0.98
    blank_deviation: Annotated[float, Field(ge=0)] = 3.0

    name: ClassVar = "black"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 1
    columns: ClassVar = {"black_share": pl.Float32(), "blank_share": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        """Score clips one by one."""
        return {
            "black_share": [_share(map(self._is_black, clip.frames), clip) for clip in batch],
            "blank_share": [_share(map(self._is_blank, clip.frames), clip) for clip in batch],
        }

    def _is_black(self, frame: NDArray[np.uint8]) -> bool:
        import cv2

        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        bright = cv2.countNonZero(cv2.threshold(luma, self.black_level, 1, cv2.THRESH_BINARY)[1])
        return bool(luma.size - bright >= self.black_pixels * luma.size)

    def _is_blank(self, frame: NDArray[np.uint8]) -> bool:
        import cv2

        small = cv2.resize(frame, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
        return bool(cv2.meanStdDev(small)[1].max() <= self.blank_deviation)


def _share(flags: Iterable[bool], clip: Clip) -> float:
    return sum(flags) / len(clip.frames)
