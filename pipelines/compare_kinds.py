"""The kinds of copies, in order of certainty: equal bytes, near pictures, near meaning, near texts.

Each kind looks only among the samples that those before it left, so a cheap and certain kind spares a dear one its
work. A copy's copy names the sample that is kept in the end, and carries the least certain reason on the way: the bytes
of an exact copy of a near copy are not those of the sample it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import RunError

REASONS = ("exact_duplicate", "near_duplicate", "semantic_duplicate", "text_duplicate")
EXACT, NEAR, SEMANTIC, TEXT = range(1, 5)
Positions = NDArray[np.int64]
_ROWS_MOVED = 65_536


@dataclass(frozen=True, kw_only=True)
class ColumnAtLeast:
    """Copies by a column of vectors or signatures: those whose likeness is at least so much."""

    column: str
    least: float


class Stars:
    """Who stands for whom among samples in order of preference, kind after kind.

    The first `kept_before` of them were kept by an earlier decision. Which pairs of vectors are compared depends on
    cells that are trained on the data at hand, so two of them may be found near only now: no meaning drops them.
    """

    def __init__(self, number: int, kept_before: int = 0) -> None:
        self._kept_before = kept_before
        self._of = np.arange(number)
        self._kind = np.zeros(number, np.uint8)

    @property
    def left(self) -> Positions:
        """The positions of the samples that nothing has dropped yet."""
        return np.flatnonzero(self._kind == 0)

    def drop(self, kind: int, positions: Positions, leaders: Positions) -> None:
        """Drop those of some left `positions` whose leader (an index into `positions`) is another one."""
        gone = leaders != np.arange(len(positions))
        if kind == SEMANTIC:
            gone &= positions >= self._kept_before
        self._of[positions[gone]] = positions[leaders[gone]]
        self._kind[positions[gone]] = kind

    def settled(self) -> tuple[Positions, Positions, NDArray[np.uint8]]:
        """Return the dropped positions, the kept one each is a copy of in the end, and the kind (see the module)."""
        of, kind = self._of, self._kind
        while not np.array_equal(of, of[of]):
            kind = np.maximum(kind, kind[of])
            of = of[of]
        dropped = np.flatnonzero(kind)
        return dropped, of[dropped], kind[dropped]


def equal_leaders(high: pl.Series, low: pl.Series) -> Positions:
    """Return for each position the first one with the same 128 bits."""
    table = pl.DataFrame({"high": high, "low": low}).with_row_index("position")
    return table.select(pl.col("position").min().over("high", "low").cast(pl.Int64)).to_series().to_numpy()


def gathered(
    parts: Iterator[tuple[NDArray[Any], NDArray[np.bool_]]], places: list[Positions], number: int, path: Path
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Lay the values of some samples down in their order, in a file that stands for memory.

    Args:
        parts: of every slice, the values (rows that have one, width), and which rows have one.
        places: of every slice, the place of each of its rows among all `number` samples.
        path: of the file.

    Returns: the values of those that have one (rows, width), and which samples these are.

    Raises:
        RunError: the widths differ.
    """
    whole: NDArray[Any] | None = None
    there = np.zeros(number, bool)
    for (values, has), where in zip(parts, places, strict=True):
        if not len(values):
            continue
        if whole is None:
            shape = (number, values.shape[1])
            whole = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
        if values.shape[1] != whole.shape[1]:
            raise RunError(
                f"duplicates: vectors of {values.shape[1]} and of {whole.shape[1]} numbers cannot be compared"
            )
        whole[where[has]] = values
        there[where[has]] = True
    if whole is None:
        return np.empty((0, 0), np.float32), there
    return _closed_up(whole, there), there


def _closed_up(whole: NDArray[Any], there: NDArray[np.bool_]) -> NDArray[Any]:
    """Move the rows that are there to the front, in place, and return them."""
    rows = np.flatnonzero(there)
    for start in range(0, len(rows), _ROWS_MOVED):
        some = rows[start : start + _ROWS_MOVED]
        whole[start : start + len(some)] = whole[some]  # a row never moves behind one that is still to move
    return whole[: len(rows)]
