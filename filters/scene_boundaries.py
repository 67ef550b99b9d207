"""What detectors of scenes tell: boundaries; and what they are.

A detector looks at a film's frames in order, from any frame on. Whatever it says about a frame hangs on that frame's
surroundings alone, so that parts of a film can be looked at apart: it states how many frames ahead of the first one
that matters it has to see (`lead_in_frames`), and how far its word is final (`settled`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # H W C

NEAR_FRAMES = 2
"""A cut as close as this to black or to a dissolve is the edge of that."""


@dataclass(frozen=True, slots=True, order=True)
class Boundary:
    """A scene ends before frame `end` and the next begins with frame `begin`, the same one where a cut is hard."""

    end: int
    begin: int
    is_fade: bool = False


@dataclass(frozen=True, slots=True)
class Light:
    """A frame's brightness: mean over its values, and their standard deviation (of a channel, on average); 0 to 255."""

    mean: float
    deviation: float


class Detector(Protocol):
    """Finds boundaries; `settled`: all that end a scene before that frame have been told."""

    lead_in_frames: int

    @property
    def settled(self) -> int: ...

    def look(self, number: int, frame: Frame, light: Light) -> list[Boundary]:
        """Look at a frame (HWC BGR); returns what it makes known."""
        ...

    def finish(self, num_frames: int) -> list[Boundary]:
        """Say that the film is over; returns what that makes known."""
        ...


def merged(boundaries: Iterable[Boundary]) -> list[Boundary]:
    """Sort boundaries, take those that overlap as one, and leave out cuts at the edges of black and of dissolves."""
    found: list[Boundary] = []
    for boundary in sorted(boundaries):
        while found and _is_edge(found[-1], boundary):
            found.pop()
        if found and _is_edge(boundary, found[-1]):
            continue
        if found and boundary.end <= found[-1].begin:
            last = found.pop()
            boundary = Boundary(last.end, max(boundary.begin, last.begin), boundary.is_fade or last.is_fade)
        found.append(boundary)
    return found


def _is_edge(cut: Boundary, wide: Boundary) -> bool:
    near = wide.end - NEAR_FRAMES <= cut.begin <= wide.begin + NEAR_FRAMES
    return cut.end == cut.begin and wide.end < wide.begin and near
