"""Hard cuts by PySceneDetect's ContentDetector and AdaptiveDetector, less those that motion and flashes look like.

For ContentDetector every frame of a dance close to the camera is a cut, so by default it is run as AdaptiveDetector:
the same score and threshold, but a frame has to differ `motion_ratio` times as much as two frames on either side do.
A photographer's flash is two cuts for both. A cut is a flash's if frames around it, before and after, look alike again;
that is asked only of cuts, so it costs nothing elsewhere. The merging of close cuts is off: it remembers cuts from long
before. Frames are named to the detectors by plain numbers: their FrameTimecode costs as much as the comparison, and
they only hand it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tokenmill.filters.scene_boundaries import Boundary, Frame, Light
from tokenmill.filters.scene_settings import AdaptiveSettings, ContentSettings

_ALIKE = 0.5  # of a cut's own score: frames before and after a flash differ by less
_MOTION_WINDOW = 2


class CutDetector:
    """Tells the cuts of one of PySceneDetect's detectors, those of flashes left out.

    A film goes on before its first and after its last frame with these pictures, so that cuts beside its ends are told.

    Args:
        detector: with `min_scene_len=0`; tells a cut `window` frames later.
        weights: how frames are compared, ContentDetector's.
    """

    def __init__(self, detector: Any, weights: Any, *, window: int, max_flash_frames: int) -> None:
        self._detector = detector
        self._window = window
        self._max_flash = max_flash_frames
        self._behind = max(window, max_flash_frames)
        self._next = 0
        self._frames: deque[Frame] = deque(maxlen=self._behind + max_flash_frames + 2)
        self._pending: list[int] = []
        self._difference = _difference(weights)
        self.lead_in_frames = self._behind + 1

    @property
    def settled(self) -> int:
        return max(0, self._next - self._behind)

    def look(self, number: int, frame: Frame, light: Light) -> list[Boundary]:
        for earlier in range(-self._window if number == 0 else 0, 0):
            self._process(earlier, frame)
        self._next = number + 1
        self._frames.append(frame)
        self._process(number, frame)
        return self._told() if self._pending else []

    def finish(self, num_frames: int) -> list[Boundary]:
        found: list[Boundary] = []
        for number in range(num_frames, num_frames + self._behind if self._frames else num_frames):
            found += self.look(number, self._frames[-1], Light(0.0, 0.0))
        return found

    def _process(self, number: int, frame: Frame) -> None:
        self._pending += self._detector.process_frame(number, frame)

    def _told(self) -> list[Boundary]:
        known = [cut for cut in self._pending if cut < self.settled]
        self._pending = self._pending[len(known) :]
        return [Boundary(cut, cut) for cut in known if not self._is_flash(cut)]

    def _is_flash(self, cut: int) -> bool:
        oldest = self._next - len(self._frames)
        frames = dict(enumerate(self._frames, start=oldest))
        pairs = [(cut - 1, cut), *_around(cut, self._max_flash)]
        differences = [self._difference(frames[a], frames[b]) for a, b in pairs if a in frames and b in frames]
        return any(one < _ALIKE * differences[0] for one in differences[1:])


def _around(cut: int, max_flash_frames: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of frames before and after `cut` between which a flash may lie."""
    for flash in range(1, max_flash_frames + 1):
        for before in range(flash + 1):
            yield cut - 1 - before, cut + flash - before


def _difference(weights: Any) -> Callable[[Frame, Frame], float]:
    """Return ContentDetector's score between two frames."""
    from scenedetect.detectors import ContentDetector

    class Comparison(ContentDetector):  # type: ignore[misc]
        def __call__(self, one: Frame, other: Frame) -> float:
            self.process_frame(0, one)
            self.process_frame(1, other)
            return float(self._frame_score)

    return Comparison(min_scene_len=0, weights=weights)


def content_cuts(settings: ContentSettings, max_flash_frames: int) -> CutDetector:
    """Return ContentDetector, held against the motion around unless `motion_ratio` is 0."""
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    weights = _weights(settings)
    if settings.motion_ratio == 0:
        plain = ContentDetector(min_scene_len=0, threshold=settings.threshold, weights=weights)
        return CutDetector(plain, weights, window=0, max_flash_frames=max_flash_frames)
    detector = AdaptiveDetector(
        min_scene_len=0,
        adaptive_threshold=settings.motion_ratio,
        window_width=_MOTION_WINDOW,
        min_content_val=settings.threshold,
        weights=weights,
    )
    return CutDetector(detector, weights, window=_MOTION_WINDOW, max_flash_frames=max_flash_frames)


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
    return CutDetector(detector, weights, window=settings.window, max_flash_frames=max_flash_frames)


def _weights(settings: ContentSettings) -> Any:
    from scenedetect.detectors import ContentDetector

    return ContentDetector.Components(settings.hue, settings.saturation, settings.luma, settings.edges)
