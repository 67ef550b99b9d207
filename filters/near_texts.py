"""Near copies of texts by MinHash: which kept signature, at an estimated Jaccard of so much or more, stands for which.

Candidates are texts that agree in a band (`text_bands.py`); what counts is how many permutations of the whole
signatures agree, so a band alone drops nothing. With 128 permutations the estimate has a standard deviation of
√(J(1 - J)/128): 0.035 at 0.8. Texts cut from one template, unlike enough to be kept but alike in many bands, share
buckets and are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.filters.buckets import Keys, fill_buckets
from tokenmill.filters.parts import MapParts, map_in_process
from tokenmill.filters.segments import segmented_leaders
from tokenmill.filters.stars import NOBODY, Positions, star_leaders
from tokenmill.filters.text_bands import Banding, agreeing, choose_banding

Signatures = NDArray[np.uint32]

_ROWS_AT_ONCE = 1 << 22  # some 6 GB while two such segments are compared
_LEAF_ROWS = 64
_ALONE = 1 << 14  # fewer rows than that are not worth a second thread
_MOST_MISSED = 0.01


def text_leaders(
    signatures: Signatures,
    *,
    min_jaccard: float,
    map_parts: MapParts = map_in_process,
    workspace: Path | None = None,
    rows_at_once: int = _ROWS_AT_ONCE,
    most_missed: float = _MOST_MISSED,
    threads: int = 1,
) -> Positions:
    """Return for each MinHash signature, in order of preference, the position of the kept one that stands for it.

    Args:
        signatures: u32 (n, permutations); with a workspace it may be a memory map.
        min_jaccard: estimated similarity of near copies, above 0, up to 1.
        map_parts: who does the parts of work that does not fit into memory at once.
        workspace: an empty folder that all workers see, for more than `rows_at_once` signatures.
        rows_at_once: signatures compared in memory at once.
        most_missed: share of the pairs at the threshold that bands may miss.
        threads: of this process, and of each part.

    Raises:
        ValueError: the threshold is out of range, or the signatures are no matrix of UInt32.
    """
    if not 0 < min_jaccard <= 1:
        raise ValueError(f"min_jaccard must be above 0 and at most 1, found {min_jaccard}")
    if signatures.dtype != np.uint32 or signatures.ndim != 2 or not signatures.shape[1]:
        raise ValueError(f"signatures must be a matrix of uint32, found {signatures.dtype}, {signatures.shape}")
    banding = choose_banding(signatures.shape[1], min_jaccard, most_missed)
    open_rows = partial(TextNeighbours.of_columns, min_jaccard=min_jaccard, banding=banding, threads=threads)
    columns = {"signatures": signatures}
    if workspace is None or len(signatures) <= rows_at_once:
        return star_leaders(open_rows(columns), len(signatures))
    return segmented_leaders(
        columns, open_rows=open_rows, rows_at_once=rows_at_once, workspace=workspace, map_parts=map_parts
    )


class TextNeighbours:
    """Signatures that are near if they agree in a band and in so many permutations."""

    leaf_rows = _LEAF_ROWS

    def __init__(self, signatures: Signatures, *, min_jaccard: float, banding: Banding, threads: int = 1) -> None:
        self.signatures = np.ascontiguousarray(signatures)
        self.agreeing = agreeing(signatures.shape[1], min_jaccard)
        self.threads = threads
        self.bands = _band_keys(self.signatures, banding.num_bands, banding.rows)

    @classmethod
    def of_columns(
        cls, columns: Mapping[str, NDArray[Any]], *, min_jaccard: float, banding: Banding, threads: int
    ) -> TextNeighbours:
        """Hold the column `signatures`."""
        return cls(columns["signatures"], min_jaccard=min_jaccard, banding=banding, threads=threads)

    def comparable(self) -> Positions:
        return np.arange(len(self.signatures))

    def among(self, rows: Positions) -> Positions:
        return rows[_greedy(self.signatures, self.bands, rows, self.agreeing)]

    def first(self, queries: Positions, kept: Positions) -> Positions:
        threads = self.threads if len(queries) + len(kept) > _ALONE else 1
        shares = [self.bands[number::threads] for number in range(threads)]
        if threads == 1:
            best = self._first_by(shares[0], queries, kept)
        else:
            with ThreadPoolExecutor(threads) as pool:
                best = np.minimum.reduce(list(pool.map(lambda share: self._first_by(share, queries, kept), shares)))
        return np.append(kept, NOBODY)[best]

    def _first_by(self, bands: Keys, queries: Positions, kept: Positions) -> NDArray[np.int32]:
        best = np.full(len(queries), len(kept), np.int32)
        for band in bands:
            keys, query_keys = band[kept], band[queries]
            _look_up(
                *fill_buckets(keys, query_keys), keys, query_keys, self.signatures, kept, queries, self.agreeing, best
            )
        return best


@compiled
def _band_keys(signatures: Signatures, num_bands: int, rows: int) -> Keys:
    """Hash each band of each signature to a key: (bands, n)."""
    keys = np.empty((num_bands, len(signatures)), np.uint64)
    for text in range(len(signatures)):
        for band in range(num_bands):
            key = np.uint64(0xCBF29CE484222325)
            for permutation in range(band * rows, band * rows + rows):
                key = (key ^ np.uint64(signatures[text, permutation])) * np.uint64(0x9E3779B97F4A7C15)
                key = key ^ (key >> np.uint64(29))
            keys[band, text] = key
    return keys


@compiled
def _agree(one: Signatures, other: Signatures) -> int:
    total = 0
    for permutation in range(len(one)):
        total += one[permutation] == other[permutation]
    return total


@compiled
def _look_up(
    starts: NDArray[np.int32],
    order: NDArray[np.int32],
    of_queries: NDArray[np.int32],
    keys: Keys,
    query_keys: Keys,
    signatures: Signatures,
    kept: Positions,
    queries: Positions,
    agreeing: int,
    best: NDArray[np.int32],
) -> None:
    """Improve `best` by the first kept text of each query's bucket that has its key and agrees enough."""
    for query in range(len(queries)):
        for place in range(starts[of_queries[query]], starts[of_queries[query] + 1]):
            candidate = order[place]
            if candidate >= best[query]:
                break
            if keys[candidate] != query_keys[query]:
                continue
            if _agree(signatures[kept[candidate]], signatures[queries[query]]) >= agreeing:
                best[query] = candidate
                break


@compiled
def _greedy(signatures: Signatures, bands: Keys, rows: Positions, agreeing: int) -> Positions:
    leaders = np.empty(len(rows), np.int64)
    for row in range(len(rows)):
        leaders[row] = row
        for better in range(row):
            if leaders[better] != better or _agree(signatures[rows[row]], signatures[rows[better]]) < agreeing:
                continue
            if (bands[:, rows[row]] == bands[:, rows[better]]).any():
                leaders[row] = better
                break
    return leaders
