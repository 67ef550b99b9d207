"""Long clips in equal stretches: the paper captions clips below 20 s whole, longer ones in parts of 10 to 20 s."""

from __future__ import annotations

import math
from itertools import pairwise


def stretches(
    start_frame: int,
    end_frame: int,
    start_seconds: float | None,
    end_seconds: float | None,
    fps: float,
    long_seconds: float = 20.0,
) -> list[tuple[int, int]]:
    """Cut frames [start, end) of a clip into equal stretches, of half of `long_seconds` up to all of it.

    A clip shorter than `long_seconds` is one stretch; how long it is say its times where they are known, else `fps`.
    The stretches' frames differ by one at most, and none is empty: of few frames there are few (EMU3.md §1).
    """
    frames = end_frame - start_frame
    known = start_seconds is not None and end_seconds is not None
    seconds = end_seconds - start_seconds if known else frames / fps  # type: ignore[operator]
    count = 1 if seconds < long_seconds else max(2, math.ceil(seconds / long_seconds))
    count = max(1, min(count, frames))
    borders = [start_frame + frames * part // count for part in range(count + 1)]
    return list(pairwise(borders))
