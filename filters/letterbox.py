"""Black bars around a picture: letterbox, pillarbox, both.

A line of pixels is dark where no sampled frame lights it, so a bar has to be steady. Night shots have dark edges too,
hence two more conditions: beside a bar lies a straight edge, that is the next lines are lit over half of their length;
and the opposite edge is dark as far. What bars look like is thus missed where something lies in them (subtitles, a
logo) or where the picture beside both of them is black; a dark picture is not taken for bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip import Clip
from tokenmill.filters.scorer import Columns, fingerprint_of

COLUMNS = {
    "content_left_px": pl.Int32(),
    "content_top_px": pl.Int32(),
    "content_width_px": pl.Int32(),
    "content_height_px": pl.Int32(),
    "content_share": pl.Float32(),
}
_SPECKS = 0.005  # of a dark line's pixels may be lit: a hot pixel, a coding error
_EDGE_LINES = 2  # behind a bar that may hold its straight edge: the first is often a blend of both
_UNEVEN = 0.1  # of the side that two opposite bars may differ by

_Lit = NDArray[np.bool_]  # H W: lit in some frame


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """The box of the picture inside its bars, in pixels of the source, and its share of the frame's area.

    Without bars it is the whole frame. It is null for clips that are dark everywhere. Exact to one pixel of the
    sampled frames: 3 px of a source of 720 lines at a shorter side of 256.

    Args:
        black_level: luma (0 to 255) up to which a pixel is dark.
        edge_share: share of a line that has to be lit beside a bar.
    """

    black_level: Annotated[int, Field(ge=0, le=255)] = 16
    edge_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    name: ClassVar = "letterbox"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 1
    columns: ClassVar = COLUMNS

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        """Score clips one by one."""
        rows = [self._box(clip) for clip in batch]
        return {column: [row[number] for row in rows] for number, column in enumerate(COLUMNS)}

    def _box(self, clip: Clip) -> tuple[Any, ...]:
        lit = _brightest(clip) > self.black_level
        across, down = lit.mean(axis=0) > _SPECKS, lit.mean(axis=1) > _SPECKS
        if not across.any() or not down.any():
            return (None,) * len(COLUMNS)
        left, right = self._bars(lit[_inside(down)].mean(axis=0))
        top, bottom = self._bars(lit[:, _inside(across)].mean(axis=1))
        height, width = lit.shape
        x, y = clip.width_px / width, clip.height_px / height
        start, upper = round(left * x), round(top * y)
        wide, high = round((width - right) * x) - start, round((height - bottom) * y) - upper
        return start, upper, wide, high, wide * high / (clip.width_px * clip.height_px)

    def _bars(self, lit_share: NDArray[np.float64]) -> tuple[int, int]:
        """Return how many lines at the beginning and at the end are bars, from the lit share of each line."""
        first, first_straight = self._dark_run(lit_share)
        last, last_straight = self._dark_run(lit_share[::-1])
        straight = [run for run, is_straight in ((first, first_straight), (last, last_straight)) if is_straight]
        if len(straight) == 2 and abs(first - last) <= _UNEVEN * len(lit_share):
            return first, last
        bar = min(straight, default=0)
        return (min(first, bar), min(last, bar)) if min(first, last) >= bar - 1 else (0, 0)

    def _dark_run(self, lit_share: NDArray[np.float64]) -> tuple[int, bool]:
        """Return how many lines are dark from the beginning on, and whether a straight edge ends them."""
        run = int(np.argmax(lit_share > _SPECKS))
        return run, bool(lit_share[run : run + _EDGE_LINES].max() >= self.edge_share)


def _brightest(clip: Clip) -> NDArray[np.uint8]:
    """Return the brightest luma that each pixel has in any frame, HW."""
    import cv2

    brightest = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY)
    for frame in clip.frames[1:]:
        cv2.max(brightest, cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dst=brightest)
    return brightest  # type: ignore[no-any-return]


def _inside(lit: NDArray[np.bool_]) -> slice:
    """Return the lines from the first lit one to the last."""
    places = np.flatnonzero(lit)
    return slice(int(places[0]), int(places[-1]) + 1)
