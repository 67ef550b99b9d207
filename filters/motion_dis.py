"""Dense optical flow by OpenCV's inverse search (DIS), as classical as it is quick."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.clip import Frames
from tokenmill.filters.motion_figures import Flow

Preset = Literal["ultrafast", "fast", "medium"]
_PRESETS: tuple[Preset, ...] = ("ultrafast", "fast", "medium")
_LEAST_PX = 64  # DIS crashes the process on pictures with a side under 32 px, such as 500 x 24

_Grey = NDArray[np.uint8]  # H W


def flows_between(frames: Frames, preset: Preset, short_side_px: int) -> Iterator[Flow]:
    """Yield the flow from each frame (THWC RGB) to the next, at a shorter side of `short_side_px`, in px of that."""
    import cv2

    search = cv2.DISOpticalFlow.create(_PRESETS.index(preset))  # 7 µs; one each, for it is not for several threads
    before: _Grey | None = None
    for frame in frames:
        grey = _grey(frame, short_side_px)
        if before is not None:
            yield _flow(search, before, grey)
        before = grey


def _grey(frame: Frames, short_side_px: int) -> _Grey:
    import cv2

    grey: _Grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return grey
    size = (max(short_side_px, round(width * scale)), max(short_side_px, round(height * scale)))
    small: _Grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return small


def _flow(search: Any, before: _Grey, after: _Grey) -> Flow:
    """Search on pictures that are large enough, their borders repeated; what was added is left out again."""
    height, width = before.shape
    if min(height, width) < _LEAST_PX:
        before, after = _padded(before), _padded(after)
    flow: Flow = search.calc(before, after, None)
    return flow[:height, :width]


def _padded(grey: _Grey) -> _Grey:
    height, width = grey.shape
    missing = ((0, max(0, _LEAST_PX - height)), (0, max(0, _LEAST_PX - width)))
    return np.pad(grey, missing, mode="edge")
