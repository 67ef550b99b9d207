"""What a score is worth: Wilson's interval, and what the same answers score when dealt to other questions.

A model that ignores what it is asked gives answers that fit any other question of the kind as well. So the chance level
is not guessed: every answer is judged against every other question, and the mean over all pairs is the exact
expectation over all ways to deal them out. How far a score may lie from it by luck comes from 20,000 permutations.

Legend: N questions of a kind and their answers; `fits[i, j]` says whether answer j is right for question i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Fits = NDArray[np.bool_]

Z95, Z99 = 1.959964, 2.575829
PERMUTATIONS = 20_000
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A share with its bounds, and how many it is a share of."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """The score of dealt-out answers: expectation, and the middle 99 % of it over permutations."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AtChance:
    """Whether a score is what chance gives. `within` is the two-sided test; `above` is what a control must not be."""

    score: float
    chance: Chance
    within: bool
    above: bool

    @property
    def holds(self) -> bool:
        """A control is at chance if it is within the interval or not above it."""
        return not self.above


def wilson(right: float, n: int, z: float = Z95) -> Interval:
    """Return the share `right` / `n` with Wilson's interval, which holds for shares near 0 and 1 too.

    Raises ValueError for counts that cannot be.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} of {n} is no share")
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(value=share, low=max(0.0, middle - reach), high=min(1.0, middle + reach), n=n)


def chance(strata: Sequence[Fits], *, seed: int = 0, permutations: int = PERMUTATIONS) -> Chance | None:
    """Deal answers out inside each stratum (questions that have the same possible answers).

    The mean is exact: over all pairs of a question and *another* question's answer. None where a stratum is alone with
    itself, so that nothing can be dealt.
    """
    strata = [fits for fits in strata if len(fits)]
    n = sum(len(fits) for fits in strata)
    if n == 0 or any(len(fits) < 2 for fits in strata):
        return None
    mean = sum(_off_diagonal(fits) * len(fits) for fits in strata) / n
    random = np.random.default_rng(seed)
    counts = sum(_dealt(fits, random, permutations) for fits in strata)
    low, high = np.quantile(counts, [0.005, 0.995], method="closest_observation") / n
    return Chance(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)), n=n)


def _off_diagonal(fits: Fits) -> float:
    n = len(fits)
    return float(fits.sum() - np.trace(fits)) / (n * (n - 1))


def _dealt(fits: Fits, random: np.random.Generator, permutations: int) -> NDArray[np.int64]:
    """Count the right answers of each of many permutations."""
    n = len(fits)
    counts = []
    rows = np.arange(n)
    for start in range(0, permutations, max(1, _CELLS_AT_ONCE // n)):
        number = min(max(1, _CELLS_AT_ONCE // n), permutations - start)
        dealt = random.permuted(np.broadcast_to(rows, (number, n)), axis=1)
        counts.append(fits[rows, dealt].sum(1))
    return np.concatenate(counts)


def at_chance(score: float, level: Chance) -> AtChance:
    """Compare a score with its chance level: two-sided at 99 %, and whether it is above."""
    slack = 1e-9
    above = score > level.high + slack
    return AtChance(score=score, chance=level, within=not above and score >= level.low - slack, above=above)
