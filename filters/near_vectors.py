"""Near copies by embedding: which kept vector, at a cosine of so much or more, stands for which.

Candidates come from cells (`vector_cells.py`); whether a pair is near is decided by its own cosine, so nothing is
dropped falsely. Matrix products only sort out what is clear: a cosine within 1e-4 of the threshold is summed again in
double precision and fixed order, because the last digits of a product depend on its shape and on threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.filters.parts import MapParts, map_in_process
from tokenmill.filters.segments import segmented_leaders
from tokenmill.filters.stars import NOBODY, Positions, star_leaders
from tokenmill.filters.vector_cells import Vectors, one_thread, probe, train_cells, unit, usable

_ROWS_AT_ONCE = 1 << 20
_LEAF_ROWS = 1024
_NUM_PROBES = 8
_BLOCK = 1 << 12  # rows on either side of one matrix product
_UNSURE = 1e-4
_WORTH_A_CELL = 1_500_000  # multiplications that take as long as going through one cell more

_Floats = NDArray[np.float32]
_Places = NDArray[np.int64]


def vector_leaders(
    vectors: Vectors,
    *,
    min_cosine: float,
    map_parts: MapParts = map_in_process,
    workspace: Path | None = None,
    rows_at_once: int = _ROWS_AT_ONCE,
    num_probes: int = _NUM_PROBES,
    threads: int = 1,
) -> Positions:
    """Return for each vector, in order of preference, the position of the kept one that stands for it.

    Args:
        vectors: float16 or float32 (n, d), of any length; with a workspace it may be a memory map. Rows that are NaN,
            infinite or zero equal nothing.
        min_cosine: of two near copies, above 0, up to 1.
        map_parts: who does the parts of work that does not fit into memory at once.
        workspace: an empty folder that all workers see, for more than `rows_at_once` vectors.
        rows_at_once: vectors compared in memory at once.
        num_probes: cells a vector is looked for in: more find more pairs and take longer.
        threads: of this process, and of each part.

    Raises:
        ValueError: the threshold is out of range, or the vectors are no matrix of floats.
    """
    if not 0 < min_cosine <= 1:
        raise ValueError(f"min_cosine must be above 0 and at most 1, found {min_cosine}")
    if vectors.dtype not in (np.float16, np.float32) or vectors.ndim != 2:
        raise ValueError(f"vectors must be a matrix of float16 or float32, found {vectors.dtype}, {vectors.shape}")
    centres = train_cells(vectors)
    add_probes = partial(probes_of_columns, centres=centres, num_probes=num_probes)
    open_rows = partial(VectorNeighbours.of_columns, min_cosine=min_cosine, threads=threads)
    columns = {"vectors": vectors}
    if workspace is None or len(vectors) <= rows_at_once:
        return star_leaders(open_rows({**columns, **add_probes(columns)}), len(vectors))
    return segmented_leaders(
        columns,
        open_rows=open_rows,
        rows_at_once=rows_at_once,
        workspace=workspace,
        map_parts=map_parts,
        prepare=add_probes,
    )


def probes_of_columns(
    columns: Mapping[str, NDArray[Any]], *, centres: _Floats | None, num_probes: int
) -> dict[str, NDArray[Any]]:
    """Return the column `probes` (n, cells, the home first; -1 for rows that equal nothing) for `vectors`."""
    vectors = columns["vectors"]
    if centres is None:
        return {"probes": np.where(usable(vectors), 0, -1).astype(np.int32)[:, None]}
    return {"probes": probe(vectors, centres, min(num_probes, len(centres)))}


class VectorNeighbours:
    """Vectors that are near at so much of a cosine, if the better one's home is a cell the worse one probes."""

    leaf_rows = _LEAF_ROWS

    def __init__(self, vectors: Vectors, probes: NDArray[np.int32], *, min_cosine: float, threads: int = 1) -> None:
        self.vectors = vectors
        self.probes = probes
        self.min_cosine = min_cosine
        self.threads = threads

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[Any]], *, min_cosine: float, threads: int) -> VectorNeighbours:
        """Hold the columns `vectors` and `probes`."""
        return cls(columns["vectors"], columns["probes"], min_cosine=min_cosine, threads=threads)

    def comparable(self) -> Positions:
        return np.flatnonzero(self.probes[:, 0] >= 0)

    def among(self, rows: Positions) -> Positions:
        units = unit(self.vectors[rows])
        with one_thread():
            cosines = units @ units.T
        return rows[_greedy(cosines, units, self.probes[rows], self.min_cosine)]

    def first(self, queries: Positions, kept: Positions) -> Positions:
        shares = np.array_split(queries, self.threads)
        with one_thread(), ThreadPoolExecutor(self.threads) as pool:
            return np.concatenate(list(pool.map(lambda share: self._first_of(share, kept), shares)))

    def _first_of(self, queries: Positions, kept: Positions) -> Positions:
        nobody = len(self.vectors)
        best = np.full(len(queries), nobody)
        num_cells = int(self.probes[kept, 0].max(initial=0)) + 1
        together = len(queries) * len(kept) * self.vectors.shape[1] <= num_cells * _WORTH_A_CELL
        everything = [(np.arange(len(queries)), kept)]
        for places, candidates in everything if together else self._cells(queries, kept):
            for start in range(0, len(places), _BLOCK):
                some = places[start : start + _BLOCK]
                best[some] = np.minimum(best[some], self._first_in_cell(queries[some], candidates))
        return np.where(best == nobody, NOBODY, best)

    def _cells(self, queries: Positions, kept: Positions) -> Iterator[tuple[_Places, Positions]]:
        """Yield for each cell the places of the queries that probe it and the kept rows at home in it, ascending."""
        homes = self.probes[kept, 0]
        by_home = np.argsort(homes, kind="stable")
        homes = homes[by_home]
        asked = self.probes[queries].ravel()
        by_cell = np.argsort(asked, kind="stable")
        asked = asked[by_cell]
        for cell in np.unique(homes):
            places = by_cell[slice(*np.searchsorted(asked, [cell, cell + 1]))] // self.probes.shape[1]
            if len(places):
                yield places, kept[by_home[slice(*np.searchsorted(homes, [cell, cell + 1]))]]

    def _first_in_cell(self, queries: Positions, kept: Positions) -> Positions:
        best = np.full(len(queries), len(self.vectors))
        asking = unit(self.vectors[queries])
        for start in range(0, len(kept), _BLOCK):
            some = kept[start : start + _BLOCK]
            candidates = unit(self.vectors[some])
            cosines, homes = asking @ candidates.T, self.probes[some, 0]
            found = _first_columns(cosines, asking, candidates, self.probes[queries], homes, self.min_cosine)
            best = np.minimum(best, np.append(some, len(self.vectors))[found])
        return best


@compiled
def _is_near(cosine: float, one: _Floats, other: _Floats, min_cosine: float) -> bool:
    """Decide by a product's cosine, or where that is too close to call by the vectors themselves."""
    if abs(cosine - min_cosine) > _UNSURE:
        return cosine > min_cosine
    product, square_of_one, square_of_other = 0.0, 0.0, 0.0
    for axis in range(len(one)):
        product += np.float64(one[axis]) * np.float64(other[axis])
        square_of_one += np.float64(one[axis]) ** 2
        square_of_other += np.float64(other[axis]) ** 2
    # Unit vectors in float32: equal ones must pass a threshold of 1.
    return bool(product / np.sqrt(square_of_one * square_of_other) >= min_cosine - 1e-7)


@compiled
def _first_columns(
    cosines: _Floats,
    queries: _Floats,
    kept: _Floats,
    probes: NDArray[np.int32],
    homes: NDArray[np.int32],
    min_cosine: float,
) -> _Places:
    """Return for each row of a product the first column that is near; their number where none is."""
    found = np.full(len(queries), len(kept), np.int64)
    for query in range(len(queries)):
        for place in range(len(kept)):
            cosine = cosines[query, place]
            if cosine < min_cosine - _UNSURE or not (probes[query] == homes[place]).any():
                continue
            if _is_near(cosine, queries[query], kept[place], min_cosine):
                found[query] = place
                break
    return found


@compiled
def _greedy(cosines: _Floats, units: _Floats, probes: NDArray[np.int32], min_cosine: float) -> _Places:
    leaders = np.empty(len(units), np.int64)
    for row in range(len(units)):
        leaders[row] = row
        for better in range(row):
            cosine = cosines[row, better]
            if cosine < min_cosine - _UNSURE or leaders[better] != better:
                continue
            if not (probes[row] == probes[better, 0]).any():
                continue
            if _is_near(cosine, units[row], units[better], min_cosine):
                leaders[row] = better
                break
    return leaders
