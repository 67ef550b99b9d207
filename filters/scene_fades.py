"""Fades by PySceneDetect's ThresholdDetector: a scene ends at the first black frame, the next begins after the last.

PySceneDetect cuts in the middle of the black, which hangs on frames far away; its bias of -1 names the first black
frame. For it a frame is black if its mean is under the threshold, and so is the night side of the Earth, or white text
on black. Here such a frame counts as black if the standard deviation of its values is under the threshold too; else the
detector is told that its mean is the threshold. The ramp beside the black is measured by `ramp_frames`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.scene_boundaries import Boundary, Frame, Light

_ANY_RATE = Fraction(25)  # a timecode needs one; only its frame number is looked at
_AHEAD = 3  # frames; films from 24 to 30 frames a second repeat every fifth


class FadeDetector:
    """Tells black: where it begins and where the next picture is."""

    lead_in_frames = 1

    def __init__(self, threshold: float) -> None:
        from scenedetect.detectors import ThresholdDetector

        self._detector = ThresholdDetector(threshold, min_scene_len=0, fade_bias=-1.0, add_final_scene=True)
        self._known = _KnownBrightness()
        self._detector.stats_manager = self._known
        self._last: Any = None

    @property
    def settled(self) -> int:
        if self._last is None:
            return 0
        last = self._detector.last_fade
        return int(last["frame"].frame_num) if last["type"] == "out" else int(self._last.frame_num) + 1

    def look(self, number: int, frame: Frame, light: Light) -> list[Boundary]:
        from scenedetect import FrameTimecode

        is_picture = light.deviation >= self._detector.threshold
        self._known.brightness = max(light.mean, self._detector.threshold) if is_picture else light.mean
        self._last = FrameTimecode(number, fps=_ANY_RATE)
        found = self._detector.process_frame(self._last, frame)
        return [Boundary(black.frame_num, number, is_fade=True) for black in found]

    def finish(self, num_frames: int) -> list[Boundary]:
        if self._last is None:
            return []
        return [Boundary(f.frame_num, num_frames, is_fade=True) for f in self._detector.post_process(self._last)]


class _KnownBrightness:
    """Stands in for PySceneDetect's statistics, which its detector asks for a frame's mean first."""

    brightness = 0.0

    def metrics_exist(self, timecode: Any, keys: Any) -> bool:
        return True

    def get_metrics(self, timecode: Any, keys: Any) -> list[float]:
        return [self.brightness]

    def set_metrics(self, timecode: Any, values: Any) -> None:
        """Keep nothing."""


def ramp_frames(levels: NDArray[np.float64]) -> int:
    """Return how many of the frames beside black belong to the ramp; `levels` go from the black away.

    The ramp goes on while the brightness rises by a fifth of what it rose in a frame so far, and by a fiftieth of the
    first level: slow changes of the picture itself are none.
    """
    if levels.size < 2:
        return 0
    numbers = np.arange(levels.size)
    ahead = np.minimum(numbers + _AHEAD, levels.size - 1)
    rise = (levels[ahead] - levels) / np.maximum(1, ahead - numbers)
    rise[-1] = rise[-2]
    so_far = (levels - levels[0]) / np.maximum(1, numbers)
    over = np.flatnonzero(rise <= np.maximum(so_far / 5, levels[0] / 50))
    return int(over[0]) if over.size else levels.size
