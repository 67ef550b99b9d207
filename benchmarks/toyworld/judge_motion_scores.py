"""Sum up followed clips: position error, object permanence, colour kept, beside what a frozen frame scores.

Frames of one clip resemble each other, so intervals count clips: of medians by drawing whole clips again (1,000 times),
of shares by Wilson's with a clip a trial, some two times wider than if each frame were one. What an extension must beat
is a frozen *place*, taken from the physics: a frozen frame behind whose bar a thing is hidden would cost the penalty
for missing things, 16.7 px instead of 8, and make every ratio look better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.toyworld.judge_chance import Interval, wilson
from benchmarks.toyworld.judge_pixels import Pixels
from benchmarks.toyworld.judge_tracks import Followed, follow
from benchmarks.toyworld.world import MOTION_KINDS, Motion

RESAMPLES = 1_000
FRAMES_OF_A_LATENT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Distances from the physics in pixels, things that are missing included; `low`, `high`: 95 % of the median."""

    median: float
    low: float
    high: float
    p90: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionScore:
    """What clips of a kind of motion scored. Shares are of things' frames: those that should be seen, or were found."""

    kind: str
    clips: int
    moving: Errors | None
    frozen: Errors | None  # of the moving things, if they had stayed where they truly were last
    still: Errors | None
    by_latent_frame: tuple[float, ...]  # the median of moving things, in pixels
    found: Interval | None
    returns: Interval | None
    colour_kept: Interval | None
    shape_kept: Interval | None
    spurious_per_frame: float
    junk_per_frame: float
    unreadable: float

    @property
    def times_better_than_frozen(self) -> float | None:
        """How much smaller the median error of moving things is than a frozen place's; None without any."""
        if self.moving is None or self.frozen is None:
            return None
        return self.frozen.median / max(self.moving.median, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Describe it for a machine."""
        return {**asdict(self), "times_better_than_frozen": self.times_better_than_frozen}


def score_motions(
    motions: Sequence[Motion], clips: Sequence[Pixels], first: int, *, seed: int = 0
) -> list[MotionScore]:
    """Score frames (THWC each) that follow a context of `first` frames, over all clips and by kind of motion.

    Raises ValueError unless there is one clip a motion.
    """
    followed = [follow(made, frames, first) for made, frames in zip(motions, clips, strict=True)]
    return score_followed(motions, followed, seed=seed)


def score_followed(motions: Sequence[Motion], followed: Sequence[Followed], *, seed: int = 0) -> list[MotionScore]:
    """Score clips that were followed already."""
    scores = []
    for kind in ("all", *MOTION_KINDS):
        own = [one for made, one in zip(motions, followed, strict=True) if kind in ("all", made.kind)]
        if own:
            scores.append(_score(kind, own, seed))
    return scores


def frozen(context_THWC: Pixels, num_frames: int) -> Pixels:
    """Repeat the last frame of a context: what an extension must be better than."""
    return np.repeat(context_THWC[-1:], num_frames, axis=0)


def _score(kind: str, clips: Sequence[Followed], seed: int) -> MotionScore:
    moving = [clip.errors[:, clip.moving] for clip in clips]
    still = [clip.errors[:, ~clip.moving] for clip in clips if not clip.moving.all()]
    frames = sum(len(clip.due) for clip in clips)
    longest = max(len(clip.due) for clip in clips)
    latents = [
        _numbers([part[start : start + FRAMES_OF_A_LATENT] for part in moving])
        for start in range(0, longest, FRAMES_OF_A_LATENT)
    ]
    return MotionScore(
        kind=kind,
        clips=len(clips),
        moving=_errors(moving, seed),
        frozen=_errors([clip.frozen[:, clip.moving] for clip in clips], seed),
        still=_errors(still, seed) if still else None,
        by_latent_frame=tuple(float(np.median(errors)) for errors in latents if len(errors)),
        found=_share([(clip.found, clip.due) for clip in clips]),
        returns=_share([(clip.returns == 1, ~np.isnan(clip.returns)) for clip in clips]),
        colour_kept=_share([(clip.colour_kept, clip.found) for clip in clips]),
        shape_kept=_share([(clip.shape_kept, clip.found) for clip in clips]),
        spurious_per_frame=sum(clip.spurious for clip in clips) / frames,
        junk_per_frame=sum(clip.junk for clip in clips) / frames,
        unreadable=sum(clip.unreadable for clip in clips) / frames,
    )


def _numbers(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    joined = np.concatenate([part.ravel() for part in parts])
    numbers: NDArray[np.float64] = joined[~np.isnan(joined)]
    return numbers


def _errors(clips: Sequence[NDArray[np.float64]], seed: int) -> Errors | None:
    own = [numbers for clip in clips if len(numbers := _numbers([clip]))]
    if not own:
        return None
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(own), (RESAMPLES, len(own)))
    medians = [float(np.median(np.concatenate([own[index] for index in draw]))) for draw in draws]
    everything = np.concatenate(own)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Errors(
        median=float(np.median(everything)),
        low=float(low),
        high=float(high),
        p90=float(np.quantile(everything, 0.9)),
        n=len(everything),
    )


def _share(counted: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> Interval | None:
    """Return the share over all frames, with Wilson's interval as if each clip were one trial; None of nothing."""
    trials = sum(bool(of.any()) for _, of in counted)
    if not trials:
        return None
    share = sum(int(hit.sum()) for hit, _ in counted) / sum(int(of.sum()) for _, of in counted)
    return wilson(share * trials, trials)
