"""Where a film's scenes begin and end: several detectors fed by whoever decodes, in one forward pass (EMU3.md §1).

    finder = SceneFinder(settings, times)                # times: of each frame, and when the last one ends
    position = max(0, start - finder.lead_in_frames)     # the scenes that begin in [start, end) are wanted
    while position < num_frames and not finder.knows(end):
        finder.feed(position, frames)
        position += len(frames)
    scenes = finder.scenes(start, end)                   # the same, wherever ranges of the film begin and end
    clips = clips_of(scenes, times, settings)

Frames are small ones: 64 px find what full size does (docs/video_scenes.md), for 0.1 ms a frame instead of 7 at 720p.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.scene_boundaries import NEAR_FRAMES, Boundary, Detector, Light, merged
from tokenmill.filters.scene_clips import ClipSpan, Scene, clips_of
from tokenmill.filters.scene_cuts import adaptive_cuts, content_cuts
from tokenmill.filters.scene_fades import FadeDetector, ramp_frames
from tokenmill.filters.scene_settings import SceneSettings

__all__ = ["SCENES_VERSION", "ClipSpan", "Scene", "SceneFinder", "SceneSettings", "clips_of"]

Frames = NDArray[np.uint8]  # T H W C, RGB

SCENES_VERSION = 2
_ROUNDING_S = 1e-6


class SceneFinder:
    """Takes a film's frames in order, from any frame on.

    Args:
        settings: which detectors, and how trimmed.
        times: num_frames + 1 seconds: when each frame is shown, and when the last one ends.
    """

    def __init__(self, settings: SceneSettings, times: NDArray[np.float64]) -> None:
        self._settings = settings
        self._times = times
        self._num_frames = len(times) - 1
        self._detectors = _detectors(settings)
        self._found: list[Boundary] = _strides(times, settings.stride_seconds)
        self._brightness: NDArray[np.float64] = np.zeros(self._num_frames)
        self._next: int | None = None
        self._is_over = False
        self.lead_in_frames = NEAR_FRAMES + 1 + max((one.lead_in_frames for one in self._detectors), default=0)

    def feed(self, position: int, frames: Frames) -> None:
        """Look at `frames`, the first of which is number `position`; the film's last one ends the film."""
        import cv2

        if self._next is not None and position != self._next:
            raise ValueError(f"frames are fed in order: {self._next} is next, not {position}")
        for number, frame in enumerate(frames, start=position):
            mean, deviation = cv2.meanStdDev(frame)
            light = Light(float(mean.mean()), float(deviation.mean()))
            self._brightness[number] = light.mean
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            for detector in self._detectors:
                self._found += detector.look(number, bgr, light)
        self._next = position + len(frames)
        if self._next >= self._num_frames and not self._is_over:
            self._is_over = True
            for detector in self._detectors:
                self._found += detector.finish(self._num_frames)

    @property
    def boundaries(self) -> list[Boundary]:
        """What is known so far, ascending."""
        return merged(self._found)

    def knows(self, end: int) -> bool:
        """Tell whether the end of the last scene that begins before frame `end` is known."""
        if self._is_over or (end >= self._num_frames and not self._detectors):
            return True
        settled = min((one.settled for one in self._detectors), default=self._num_frames)
        return any(end <= one.begin < settled - NEAR_FRAMES for one in self.boundaries)

    def scenes(self, start: int, end: int) -> list[Scene]:
        """Return the scenes that begin in [start, end), their ramps beside black left out."""
        edge = Boundary(0, 0)
        known = self.boundaries
        if not known or known[0].end > 0:
            known = [edge, *known]
        known = [*known, Boundary(self._num_frames, self._num_frames)]
        return [self._trimmed(one, after) for one, after in pairwise(known) if start <= one.begin < end]

    def begins_none(self, start: int, end: int) -> bool:
        """Tell that no scene begins in [start, end), so that nothing behind `end` is of interest."""
        settled = min((one.settled for one in self._detectors), default=self._num_frames)
        return end < settled - NEAR_FRAMES and not self.scenes(start, end)

    def _trimmed(self, before: Boundary, after: Boundary) -> Scene:
        start, end = before.begin, max(before.begin, after.end)
        fades = self._settings.fades
        if fades is None or not fades.trim:
            return Scene(start, end)
        levels, times = self._brightness, self._times
        if before.is_fade:
            until = int(np.searchsorted(times, times[start] + fades.max_seconds + _ROUNDING_S))
            first = start + ramp_frames(levels[start : min(end, until)])
        else:
            first = start
        if after.is_fade:
            since = int(np.searchsorted(times, times[end] - fades.max_seconds - _ROUNDING_S))
            end -= ramp_frames(levels[max(first, since) : end][::-1])
        return Scene(first, end)


def _detectors(settings: SceneSettings) -> list[Detector]:
    found: list[Detector] = []
    if settings.content is not None:
        found.append(content_cuts(settings.content, settings.max_flash_frames))
    if settings.fades is not None:
        found.append(FadeDetector(settings.fades.threshold))
    if settings.adaptive is not None:
        found.append(adaptive_cuts(settings.adaptive, settings.content, settings.max_flash_frames))
    if settings.transnet is not None:
        from tokenmill.filters.scene_transnet import TransnetDetector

        found.append(TransnetDetector(settings.transnet))
    return found


def _strides(times: NDArray[np.float64], stride_seconds: float | None) -> list[Boundary]:
    """Return the frames on show at the multiples of the stride, from the film's first frame on."""
    if stride_seconds is None or len(times) < 2:
        return []
    passed = np.floor((times[:-1] - times[0] + _ROUNDING_S) / stride_seconds)  # not the multiples: pauses have millions
    return [Boundary(int(frame), int(frame)) for frame in np.flatnonzero(np.diff(passed)) + 1]
