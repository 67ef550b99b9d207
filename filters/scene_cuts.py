"""Hard cuts by PySceneDetect's ContentDetector and AdaptiveDetector, less the flashes.

A photographer's flash is two cuts for them. Two cuts at most `max_flash_frames` apart are none if the frame before the
first and the frame of the second look alike by ContentDetector's own measure; that is asked only where two cuts stand
so close, so it costs nothing elsewhere. The detectors' merging of close cuts is off: it remembers cuts from long before.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any

from tokenmill.filters.scene_boundaries import Boundary, Frame
from tokenmill.filters.scene_settings import AdaptiveSettings, ContentSettings

_ANY_RATE = Fraction(25)  # a timecode needs one; only its frame number is looked at


class CutDetector:
    """Tells the cuts that one of PySceneDetect's detectors finds `delay` frames later, and flashes left out.

    Args:
        detector: with `min_scene_len=0`.
        different: a ContentDetector's settings that tell whether two frames look alike.
        memory: frames before a cut that must have been seen.
    """

    def __init__(
        self, detector: Any, different: dict[str, Any], *, delay: int, memory: int, max_flash_frames: int
    ) -> None:
        self._detector = detector
        self._different = different
        self._delay = delay
        self._max_flash = max_flash_frames
        self._next = 0
        self._frames: deque[Frame] = deque(maxlen=max_flash_frames + delay + 2)
        self._pending: dict[int, bool] = {}  # cut → whether it is a flash's
        self.lead_in_frames = memory + max_flash_frames

    @property
    def settled(self) -> int:
        return max(0, self._next - self._delay - self._max_flash)

    def look(self, number: int, frame: Frame, brightness: float) -> list[Boundary]:
        from scenedetect import FrameTimecode

        self._next = number + 1
        self._frames.append(frame)
        for cut in self._detector.process_frame(FrameTimecode(number, fps=_ANY_RATE), frame):
            self._add(cut.frame_num)
        return self._told(self.settled) if self._pending else []

    def finish(self, num_frames: int) -> list[Boundary]:
        return self._told(num_frames)

    def _add(self, cut: int) -> None:
        self._pending[cut] = False
        for earlier in range(cut - self._max_flash, cut):
            if earlier in self._pending and self._look_alike(earlier - 1, cut):
                self._pending[earlier] = self._pending[cut] = True

    def _look_alike(self, one: int, other: int) -> bool:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        comparison = ContentDetector(min_scene_len=0, **self._different)
        oldest = self._next - len(self._frames)
        if one < oldest:  # the feeding began just before, in what nobody asks about
            return False
        for number in (one, other):
            cuts = comparison.process_frame(FrameTimecode(number, fps=_ANY_RATE), self._frames[number - oldest])
        return not cuts

    def _told(self, settled: int) -> list[Boundary]:
        known = [cut for cut in self._pending if cut < settled]
        return [Boundary(cut, cut) for cut in known if not self._pending.pop(cut)]


def content_cuts(settings: ContentSettings, max_flash_frames: int) -> CutDetector:
    """Return ContentDetector."""
    from scenedetect.detectors import ContentDetector

    described = {"threshold": settings.threshold, "weights": _weights(settings)}
    detector = ContentDetector(min_scene_len=0, **described)
    return CutDetector(detector, described, delay=0, memory=1, max_flash_frames=max_flash_frames)


def adaptive_cuts(settings: AdaptiveSettings, content: ContentSettings | None, max_flash_frames: int) -> CutDetector:
    """Return AdaptiveDetector, with the weights of `content`."""
    from scenedetect.detectors import AdaptiveDetector

    weights = _weights(content or ContentSettings())
    detector = AdaptiveDetector(
        min_scene_len=0,
        adaptive_threshold=settings.threshold,
        window_width=settings.window,
        min_content_val=settings.min_content,
        weights=weights,
    )
    different = {"threshold": settings.min_content, "weights": weights}
    memory = settings.window + 1
    return CutDetector(detector, different, delay=settings.window, memory=memory, max_flash_frames=max_flash_frames)


def _weights(settings: ContentSettings) -> Any:
    from scenedetect.detectors import ContentDetector

    return ContentDetector.Components(settings.hue, settings.saturation, settings.luma, settings.edges)
