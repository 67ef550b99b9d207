"""Where a film's scenes change: PySceneDetect's detectors for cuts and for fades, fed by whoever decodes (EMU3.md §1).

Fed small frames, in one pass: at 72 px the cuts of the demo's clips are those of full size, for 0.1 ms a frame
instead of 7 at 720p. The detectors' own merging of close cuts is off, because it remembers cuts from long before; so a
cut depends on its own surroundings and not on where the feeding began, and scenes that are too short are left out here.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # T H W C, RGB

SCENES_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes are found, and which become clips.

    Args:
        content_threshold: mean change of hue, saturation and luma (0 to 255) from frame to frame that makes a cut.
        fade_threshold: mean brightness (0 to 255) under which a picture is black; a fade is cut in its middle.
        min_seconds: shorter scenes are no clip.
        max_seconds: longer scenes become several clips.
    """

    content_threshold: float = 27.0
    fade_threshold: float = 12.0
    min_seconds: float = 1.0
    max_seconds: float = 20.0


class CutFinder:
    """Takes a film's frames in order, from any frame on; `cuts` are the frames where a new scene begins, ascending.

    A cut is known with its own frame, a fade only when the picture is bright again.
    """

    def __init__(self, settings: SceneSettings, fps: float) -> None:
        from scenedetect.detectors import ContentDetector, ThresholdDetector

        self.cuts: list[int] = []
        self._fps = fps
        self._last: Any = None
        self._detectors = (
            ContentDetector(threshold=settings.content_threshold, min_scene_len=0),
            ThresholdDetector(threshold=settings.fade_threshold, min_scene_len=0, add_final_scene=True),
        )

    def feed(self, position: int, frames: Frames) -> None:
        """Look at `frames`, the first of which is frame number `position`."""
        from scenedetect import FrameTimecode

        for number, frame in enumerate(frames, start=position):
            self._last = FrameTimecode(number, fps=self._fps)
            bgr = np.ascontiguousarray(frame[..., ::-1])
            for detector in self._detectors:
                self._add(detector.process_frame(self._last, bgr))

    def finish(self) -> None:
        """Say that the film is over: black at its end becomes a scene of its own."""
        if self._last is not None:
            for detector in self._detectors:
                self._add(detector.post_process(self._last))

    def _add(self, found: Sequence[Any]) -> None:
        for cut in found:
            if cut.frame_num not in self.cuts:
                bisect.insort(self.cuts, cut.frame_num)


def clips_of(cuts: Sequence[int], start: int, end: int, fps: float, settings: SceneSettings) -> list[tuple[int, int]]:
    """Turn the cuts between frames `start` and `end` into clips (first frame, the one after the last).

    Scenes under `min_seconds` are left out; those over `max_seconds` are cut into equal pieces of at most that length.
    """
    edges = [start, *(cut for cut in cuts if start < cut < end), end]
    clips = []
    for first, behind in pairwise(edges):
        if behind > first and behind - first >= settings.min_seconds * fps:
            clips += _pieces(first, behind, max(1, int(settings.max_seconds * fps)))
    return clips


def _pieces(first: int, behind: int, longest: int) -> list[tuple[int, int]]:
    length = behind - first
    count = -(-length // longest)
    edges = [first + length * piece // count for piece in range(count + 1)]
    return list(pairwise(edges))
