"""Follow the things of an extended clip and compare them with the physics: place, permanence, colour.

Every frame is read by itself; what was read is assigned to the clip's things (Hungarian: the same colour, else the same
place; then the shape, then the nearest), so nothing is carried from one frame to the next and a thing that jumps back
costs what it is off. A thing that should be seen and is not is never left out: it counts as if it had been put
anywhere, the mean distance of two random places of the picture off (0.5214 of its side, 16.7 of 32 pixels).

Legend: T frames, N things, H height, W width, C channels (RGB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks.toyworld.judge_pixels import Pixels
from benchmarks.toyworld.judge_reading import CLIPS, PICTURES, Seen, read
from benchmarks.toyworld.motion import tracks
from benchmarks.toyworld.world import Motion, Mover

SHOULD_BE_SEEN = 0.5  # of a thing's box: it must be found, and near
HIDDEN, OUT_AGAIN = 0.1, 0.9
NEAR_PX = 8.0  # a code's side: a thing that comes out again is where it should be
OF_ANOTHER_SHAPE_PX = 2.0  # how much nearer it must be to be taken for a thing all the same
RANDOM_PLACES = 0.5214  # mean distance of two random places in a square of side 1
_NEVER = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What one clip's frames show of its things; arrays are (T, N), errors in pixels and NaN where none need be seen.

    `frozen`: how far off a thing is that stays where it truly was in the context's last frame.
    """

    errors: NDArray[np.float64]
    frozen: NDArray[np.float64]
    due: NDArray[np.bool_]
    found: NDArray[np.bool_]
    colour_kept: NDArray[np.bool_]
    shape_kept: NDArray[np.bool_]
    moving: NDArray[np.bool_]  # (N)
    returns: NDArray[np.float64]  # (N): 1 came out again where it should, 0 did not, NaN: nothing of it was hidden
    spurious: int
    junk: int
    unreadable: int

    def to_json(self) -> dict[str, Any]:
        """Describe it for a machine: lists, None for NaN."""
        fields = asdict(self)
        return {name: _listed(value) for name, value in fields.items()}


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_listed(one) for one in value] if value.ndim else _listed(value.item())
    if isinstance(value, np.generic):
        return _listed(value.item())
    return None if isinstance(value, float) and np.isnan(value) else value


def follow(made: Motion, frames_THWC: Pixels, first: int) -> Followed:
    """Compare frames `first`, `first` + 1, … of a clip with where its things are then; before them is the context."""
    truth = tracks(made, len(frames_THWC), first=first)
    before = tracks(made, 1, first=first - 1)
    look = PICTURES if made.bar is None else CLIPS
    readings = [read(frame, look) for frame in frames_THWC]
    shape = truth.visible.shape
    found, colour, form = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    errors = np.full(shape, RANDOM_PLACES * max(frames_THWC.shape[1:3]))
    spurious = 0
    for time, reading in enumerate(readings):
        pairs = _assigned(made.objects, truth.centres[time], truth.visible[time], reading.objects)
        spurious += len(reading.objects) - len(pairs)
        for index, seen in pairs.items():
            thing = made.objects[index]
            found[time, index] = True
            colour[time, index], form[time, index] = seen.colour == thing.colour, seen.shape == thing.shape
            errors[time, index] = _distance(truth.centres[time, index], seen)
    due = truth.visible >= SHOULD_BE_SEEN
    return Followed(
        errors=np.where(due, errors, np.nan),
        frozen=np.where(due, np.linalg.norm(truth.centres - before.centres, axis=-1), np.nan),
        due=due,
        found=found & due,
        colour_kept=colour & due,
        shape_kept=form & due,
        moving=np.array([bool(thing.vx or thing.vy) for thing in made.objects]),
        returns=_returns(np.concatenate([before.visible, truth.visible]), found & colour & (errors < NEAR_PX)),
        spurious=spurious,
        junk=sum(reading.junk for reading in readings),
        unreadable=sum(reading.background is None for reading in readings),
    )


def _assigned(
    things: Sequence[Mover], centres: NDArray[np.float64], visible: NDArray[np.float64], seen: Sequence[Seen]
) -> dict[int, Seen]:
    """Say which thing each object seen is; hidden things are nobody."""
    if not seen:
        return {}
    costs = np.full((len(things), len(seen)), _NEVER)
    for row, thing in enumerate(things):
        for column, one in enumerate(seen):
            away = _distance(centres[row], one)
            if visible[row] > HIDDEN and (one.colour == thing.colour or away <= thing.radius):
                costs[row, column] = away + OF_ANOTHER_SHAPE_PX * (one.shape != thing.shape)
    rows, columns = linear_sum_assignment(costs)
    return {int(r): seen[c] for r, c in zip(rows, columns, strict=True) if costs[r, c] < _NEVER}


def _distance(centre: NDArray[np.float64], seen: Seen) -> float:
    return float(np.hypot(seen.x - centre[0], seen.y - centre[1]))


def _returns(visible: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each thing that was hidden and is out again: is it where it should be in half of those frames or more?

    `visible` has one frame more than `right`, the last one of the context.
    """
    hidden_before = np.logical_or.accumulate(visible < HIDDEN)[:-1]
    again = hidden_before & (visible[1:] >= OUT_AGAIN)
    count = again.sum(0)
    share = (right & again).sum(0) / np.maximum(count, 1)
    return np.where(count > 0, (share >= 0.5).astype(np.float64), np.nan)
