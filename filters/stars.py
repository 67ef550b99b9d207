"""Who stands for whom: near duplicates as stars around the best of them, whatever "near" means.

Rows come in order of preference. A row is kept unless a kept better row is near it; the first such one stands for it.
That greedy result is unique, so it depends on nothing but rows and order. Connected components would be easier to
spread over machines, but eat a slow pan or a colour series whole: in a ~ b ~ c, c need not look like a.

Doing it row by row needs an index that grows; here the better half is settled first, the worse half is compared with
what was *kept* of it, and what is left is settled the same way. So the one thing an engine has to be good at is to
compare many rows with many kept ones, and ten thousand copies of a thing meet the few that were kept of it, never each
other: n log n comparisons of that kind, no list of pairs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]  # of rows in order of preference: a smaller number is preferred
NOBODY = -1


class Neighbours(Protocol):
    """Rows held in memory and what it means that two of them are near; the same for any choice of rows compared."""

    @property
    def leaf_rows(self) -> int:
        """How many rows are compared with one another directly at most."""

    def comparable(self) -> Positions:
        """Return the rows that may be near others at all, ascending."""

    def among(self, rows: Positions) -> Positions:
        """Return for each of a few rows, ascending, the first kept one that is near; itself where it is kept."""

    def first(self, queries: Positions, kept: Positions) -> Positions:
        """Return for each query the first of some kept rows (ascending, all better) that is near, or `NOBODY`."""


def star_leaders(neighbours: Neighbours, num_rows: int) -> Positions:
    """Return for each row the kept one that stands for it; itself where it is kept."""
    leaders = np.arange(num_rows)
    settle(neighbours, neighbours.comparable(), leaders)
    return leaders


def settle(neighbours: Neighbours, rows: Positions, leaders: Positions) -> None:
    """Write the leaders of some rows (ascending), which nothing outside of them stands for."""
    if len(rows) <= neighbours.leaf_rows:
        leaders[rows] = neighbours.among(rows)
        return
    better, worse = np.array_split(rows, 2)
    settle(neighbours, better, leaders)
    found = neighbours.first(worse, better[leaders[better] == better])
    near = found != NOBODY
    leaders[worse[near]] = found[near]
    settle(neighbours, worse[~near], leaders)
