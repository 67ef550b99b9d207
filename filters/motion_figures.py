"""What optical flow says of a clip: how much moves, how evenly, and whether the camera trembles.

Everything is in shorter edges per 1/fps seconds, fps being what the frames were sampled at: neighbours that lie further
apart (files of a lower or variable rate) count by their speed, and for as long as it lasts. So Emu3's floor of 0.04
(EMU3.md §1) means the same for files of 24, 29.97 and 1 frames a second, and another one where
`filter.video.frames.fps` is not 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Flow = NDArray[np.float32]  # H W 2: how far each pixel goes, across and down, in px
COLUMNS = {
    "motion": pl.Float32(),
    "motion_min": pl.Float32(),
    "motion_max": pl.Float32(),
    "static_share": pl.Float32(),
    "camera_shake": pl.Float32(),
}
STATIC_BELOW = 0.004  # three times what noise and coding make of a still (docs/video_scorers.md)
_EVERY_PX = 4  # pixels whose median is the camera's way; that of all of them takes 16 times as long


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How far apart two neighbouring frames are.

    Attributes:
        steps: times 1/fps seconds.
        per_px: turns px into shorter edges per 1/fps seconds.
    """

    steps: float
    per_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happens between two neighbouring frames, in shorter edges per 1/fps seconds, and for how many of these.

    `amount` is the mean length of the flow; `across` and `down` are its median, which is the way of the camera where
    what moves by itself fills less than half of the picture.
    """

    steps: float
    amount: float
    across: float
    down: float


def step_of(flow: Flow, pace: Pace) -> Step:
    """Sum up the flow of one pair."""
    across, down = flow[..., 0], flow[..., 1]
    lengths = np.sqrt(across * across + down * down)  # a thirteenth of the time that a sum over the last axis takes
    some = np.s_[::_EVERY_PX, ::_EVERY_PX]
    return Step(
        steps=pace.steps,
        amount=float(lengths.mean(dtype=np.float64) * pace.per_px),
        across=float(np.median(across[some]) * pace.per_px),
        down=float(np.median(down[some]) * pace.per_px),
    )


def paces_of(seconds: NDArray[np.float64], fps: float, short_side_px: int) -> list[Pace]:
    """Return how far apart neighbours are, in a picture of this shorter side.

    Frames shown at the same time, which a broken file may have, count as 1/fps apart.
    """
    apart = np.diff(seconds) * fps
    return [Pace(steps=steps, per_px=1 / steps / short_side_px) for steps in np.where(apart > 0, apart, 1.0).tolist()]


def figures_of(steps: Sequence[Step], static_below: float) -> Mapping[str, float | None]:
    """Return the columns of one clip; all are null without a pair, `camera_shake` is without two."""
    if not steps:
        return dict.fromkeys(COLUMNS)
    total = sum(step.steps for step in steps)
    amounts = [step.amount for step in steps]
    return {
        "motion": sum(step.amount * step.steps for step in steps) / total,
        "motion_min": min(amounts),
        "motion_max": max(amounts),
        "static_share": sum(step.steps for step in steps if step.amount < static_below) / total,
        "camera_shake": _shake(steps),
    }


def _shake(steps: Sequence[Step]) -> float | None:
    """Return how far the camera's way changes from pair to pair, on average: 0 for still, pan and slow zoom."""
    ways = np.array([(step.across, step.down) for step in steps])
    return float(np.linalg.norm(np.diff(ways, axis=0), axis=1).mean()) if len(ways) > 1 else None
