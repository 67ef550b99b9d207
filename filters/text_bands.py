"""How many bands of how many permutations: the S-curve of MinHash with locality-sensitive hashing.

Two texts of Jaccard similarity s agree in one band of r permutations with probability s^r and in one of b bands with
1 - (1 - s^r)^b. Wider bands mean fewer candidates and more pairs missed, so the widest are taken that miss no more than
a given share of the pairs *at* the threshold; of those above it far fewer are missed. (Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, §3.4.)
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Banding(NamedTuple):
    """So many bands of so many permutations; what is left over of a signature only counts for the estimate."""

    num_bands: int
    rows: int

    def found(self, similarity: float) -> float:
        """Return the probability that a pair of that similarity becomes a candidate."""
        return float(1 - (1 - similarity**self.rows) ** self.num_bands)


def choose_banding(num_permutations: int, min_jaccard: float, most_missed: float) -> Banding:
    """Return the widest bands that miss at most that share of the pairs at the threshold."""
    for rows in range(num_permutations, 1, -1):
        banding = Banding(num_permutations // rows, rows)
        if 1 - banding.found(min_jaccard) <= most_missed:
            return banding
    return Banding(num_permutations, 1)


def agreeing(num_permutations: int, min_jaccard: float) -> int:
    """Return how many permutations must agree for an estimated similarity of at least so much."""
    return math.ceil(num_permutations * min_jaccard - 1e-9)
