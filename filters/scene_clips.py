"""From scenes to clips: which are long enough, and how long ones are divided. Pure, by times: rates may vary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.scene_settings import SceneSettings

_ROUNDING_S = 1e-6
_ONE_BY_ONE = 8  # tries of one even piece more; then twice as many more each time: films that pause have millions


@dataclass(frozen=True, slots=True, order=True)
class Scene:
    """Frames [start, end), black and ramps left out."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpan:
    """Frames [start, end): piece `piece` of `pieces` of the scene whose first frame is `scene`."""

    start: int
    end: int
    scene: int
    piece: int
    pieces: int


def clips_of(scenes: Iterable[Scene], times: NDArray[np.float64], settings: SceneSettings) -> list[ClipSpan]:
    """Return the clips of `scenes`; `times` holds when each frame is shown and when the last one ends.

    Scenes under `min_seconds` are left out. Those over `max_seconds` become as few pieces as can be, divided at the
    frames nearest to even times and none above `max_seconds`, as far as single frames allow. Where frames lie so far
    apart that no even pieces will do, pieces are as long as they may be instead.
    """
    return [clip for scene in scenes for clip in _clips(scene, times, settings)]


def _clips(scene: Scene, times: NDArray[np.float64], settings: SceneSettings) -> Iterator[ClipSpan]:
    if scene.end <= scene.start or times[scene.end] - times[scene.start] < settings.min_seconds - _ROUNDING_S:
        return
    edges = _edges(scene, times, settings.max_seconds + _ROUNDING_S)
    for piece, (start, end) in enumerate(pairwise(edges)):
        yield ClipSpan(start=start, end=end, scene=scene.start, piece=piece, pieces=len(edges) - 1)


def _edges(scene: Scene, times: NDArray[np.float64], longest_s: float) -> list[int]:
    """Return where a scene's pieces begin and the last ends; more of them where frames are coarse."""
    seconds = float(times[scene.end] - times[scene.start])
    fewest = math.ceil(seconds / longest_s)
    for pieces in _tried(fewest, min(2 * fewest + 1, scene.end - scene.start)):
        even = times[scene.start] + seconds * np.arange(1, pieces) / pieces
        inner = _nearest(times[scene.start : scene.end + 1], even) + scene.start
        edges = np.unique(np.concatenate([[scene.start], inner, [scene.end]]))
        if np.diff(times[edges]).max() <= longest_s:
            return [int(edge) for edge in edges]
    return list(_filled(scene, times, longest_s))


def _tried(fewest: int, most: int) -> Iterator[int]:
    yield from range(fewest, min(fewest + _ONE_BY_ONE, most + 1))
    more = _ONE_BY_ONE
    while fewest + more < most:
        yield fewest + more
        more *= 2
    if fewest + _ONE_BY_ONE <= most:
        yield most


def _filled(scene: Scene, times: NDArray[np.float64], longest_s: float) -> Iterator[int]:
    """Yield the edges of pieces that are as long as they may be; a frame that is longer than that is one alone."""
    edge = scene.start
    while edge < scene.end:
        yield edge
        edge = max(edge + 1, int(np.searchsorted(times, times[edge] + longest_s, side="right")) - 1)
    yield scene.end


def _nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    return np.asarray(after - (wanted - times[after - 1] < times[after] - wanted), np.int64)
