"""Near copies by 64-bit perceptual hash: which kept hash, within d bits, stands for which.

Exact: every pair within the distance is found (`hash_bands.py`), whatever the hashes are like. Many kept hashes that
share the bits of a table (pictures with the same border) are searched again by the bits that are left to them. Ten
million hashes take 66 CPU-seconds and 1.1 GB (`benchmarks/dedup.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.filters.buckets import Buckets, fill_buckets
from tokenmill.filters.hash_bands import BITS, Bits, Hashes, choose_masks, telling_bits
from tokenmill.filters.parts import MapParts, map_in_process
from tokenmill.filters.segments import segmented_leaders
from tokenmill.filters.stars import NOBODY, Positions, star_leaders

MOST_DISTANT = 16
_ROWS_AT_ONCE = 1 << 25  # some 3.5 GB while two such segments are compared
_LEAF_ROWS = 1024
_ALONE = 1 << 16  # fewer rows than that are not worth a second thread
_CROWDED = 1024  # kept hashes in one bucket
_DEEPEST = 3

_Firsts = NDArray[np.int32]  # for each query a place among the kept hashes; their number where there is none


def hash_leaders(
    hashes: Hashes,
    *,
    max_distance: int,
    map_parts: MapParts = map_in_process,
    workspace: Path | None = None,
    rows_at_once: int = _ROWS_AT_ONCE,
    threads: int = 1,
) -> Positions:
    """Return for each hash, in order of preference, the position of the kept one that stands for it.

    Args:
        hashes: u64[n]; with a workspace it may be a memory map.
        max_distance: bits within which two hashes are near copies, 0 to 16.
        map_parts: who does the parts of work that does not fit into memory at once.
        workspace: an empty folder that all workers see, for more than `rows_at_once` hashes.
        rows_at_once: hashes of a segment, some 100 bytes of memory each.
        threads: of this process, and of each part.

    Raises:
        ValueError: the distance is out of range, or the hashes are no vector of UInt64.
    """
    if not 0 <= max_distance <= MOST_DISTANT:
        raise ValueError(f"max_distance must be 0 to {MOST_DISTANT} bits, found {max_distance}")
    if hashes.dtype != np.uint64 or hashes.ndim != 1:
        raise ValueError(f"hashes must be a vector of uint64, found {hashes.dtype} of shape {hashes.shape}")
    open_rows = partial(HashNeighbours.of_columns, max_distance=max_distance, threads=threads)
    if workspace is None or len(hashes) <= rows_at_once:
        return star_leaders(open_rows({"hashes": hashes}), len(hashes))
    return segmented_leaders(
        {"hashes": hashes}, open_rows=open_rows, rows_at_once=rows_at_once, workspace=workspace, map_parts=map_parts
    )


class HashNeighbours:
    """Hashes that are near within so many bits."""

    leaf_rows = _LEAF_ROWS

    def __init__(self, hashes: Hashes, *, max_distance: int, threads: int = 1) -> None:
        self.hashes = hashes
        self.max_distance = max_distance
        self.threads = threads
        self.bits = telling_bits(hashes)

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[Any]], *, max_distance: int, threads: int) -> HashNeighbours:
        """Hold the column `hashes`."""
        return cls(columns["hashes"], max_distance=max_distance, threads=threads)

    def comparable(self) -> Positions:
        return np.arange(len(self.hashes))

    def among(self, rows: Positions) -> Positions:
        return rows[_greedy(self.hashes[rows], self.max_distance)]

    def first(self, queries: Positions, kept: Positions) -> Positions:
        threads = self.threads if len(queries) + len(kept) > _ALONE else 1
        search = _Search(self.hashes[kept], self.hashes[queries], self.max_distance)
        firsts = search.firsts(self.bits, threads)
        return np.append(kept, NOBODY)[firsts]


class _Search:
    """Queries against kept hashes in order of preference, table by table."""

    def __init__(self, kept: Hashes, queries: Hashes, max_distance: int, depth: int = 0) -> None:
        self.kept = kept
        self.queries = queries
        self.max_distance = max_distance
        self.depth = depth

    def firsts(self, bits: Bits, threads: int = 1) -> _Firsts:
        tables = () if self.depth == _DEEPEST else self._masks(bits)
        if not tables:
            return _straight(self.kept, self.queries, self.max_distance)
        if threads == 1:
            return self._by_tables(tables, bits)
        shares = [tables[number::threads] for number in range(min(threads, len(tables)))]
        with ThreadPoolExecutor(len(shares)) as pool:
            found = pool.map(lambda share: self._by_tables(share, bits), shares)
            return cast(_Firsts, np.minimum.reduce(list(found)))

    def _masks(self, bits: Bits) -> tuple[int, ...]:
        return choose_masks(bits, self.max_distance, len(self.kept), len(self.queries))

    def _by_tables(self, tables: tuple[int, ...], bits: Bits) -> _Firsts:
        best = np.full(len(self.queries), len(self.kept), np.int32)
        crowded = max(_CROWDED, 8 * len(self.kept) >> int(bits.entropy * tables[0].bit_count() / BITS))
        for mask in tables:
            buckets = fill_buckets(self.kept & np.uint64(mask), self.queries & np.uint64(mask))
            in_order = self.kept[buckets.order]
            left = _look_up(*buckets, in_order, self.queries, self.max_distance, crowded, best)
            for rows, queries in _crowds(buckets, left):
                self._in_crowd(rows, queries, mask, best)
        return best

    def _in_crowd(self, rows: NDArray[np.int32], queries: NDArray[np.int32], mask: int, best: _Firsts) -> None:
        """Compare queries with many kept hashes that agree on the bits of `mask` by the other bits."""
        kept = self.kept[rows]
        search = _Search(kept, self.queries[queries], self.max_distance, self.depth + 1)
        found = search.firsts(telling_bits(kept, among=~mask & ((1 << BITS) - 1)))
        best[queries] = np.minimum(best[queries], np.append(rows, len(self.kept))[found])


def _crowds(buckets: Buckets, left: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Yield (kept rows, queries) of every crowded bucket that queries were left over for."""
    if not len(left):
        return
    left = left[np.argsort(buckets.of_queries[left], kind="stable")]
    crowds = buckets.of_queries[left]
    for queries in np.split(left, np.flatnonzero(np.diff(crowds)) + 1):
        crowd = buckets.of_queries[queries[0]]
        yield buckets.order[buckets.starts[crowd] : buckets.starts[crowd + 1]], queries


@compiled
def _distance(one: np.uint64, other: np.uint64) -> np.int64:
    """Count differing bits; the compiler knows this pattern as one instruction."""
    bits = one ^ other
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _look_up(
    starts: NDArray[np.int32],
    order: NDArray[np.int32],
    of_queries: NDArray[np.int32],
    in_order: Hashes,
    queries: Hashes,
    max_distance: int,
    crowded: int,
    best: _Firsts,
) -> NDArray[np.int32]:
    """Improve `best` by the first near hash of each query's bucket; returns the queries of crowded buckets."""
    left = np.empty(len(queries), np.int32)
    num_left = 0
    for query in range(len(queries)):
        start, stop = starts[of_queries[query]], starts[of_queries[query] + 1]
        if stop - start > crowded:
            left[num_left] = query
            num_left += 1
            continue
        for place in range(start, stop):
            if _distance(in_order[place], queries[query]) <= max_distance:
                best[query] = min(best[query], order[place])
                break
    return left[:num_left].copy()


@compiled
def _straight(kept: Hashes, queries: Hashes, max_distance: int) -> _Firsts:
    best = np.full(len(queries), len(kept), np.int32)
    for query in range(len(queries)):
        for place in range(len(kept)):
            if _distance(kept[place], queries[query]) <= max_distance:
                best[query] = place
                break
    return best


@compiled
def _greedy(hashes: Hashes, max_distance: int) -> Positions:
    leaders = np.empty(len(hashes), np.int64)
    kept = np.empty(len(hashes), np.uint64)
    positions = np.empty(len(hashes), np.int64)
    num_kept = 0
    for row in range(len(hashes)):
        leaders[row] = row
        for place in range(num_kept):
            if _distance(kept[place], hashes[row]) <= max_distance:
                leaders[row] = positions[place]
                break
        if leaders[row] == row:
            kept[num_kept] = hashes[row]
            positions[num_kept] = row
            num_kept += 1
    return leaders
