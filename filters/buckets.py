"""Rows by key: the rows of a bucket stand together, the best first, so looking one up reads one place in memory.

Buckets are by a hash of the key, twice as many as rows: another key may share a bucket, so a candidate still has to be
compared. Counting sort, 8 bytes a row and 4 a bucket.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled

Keys = NDArray[np.uint64]


class Buckets(NamedTuple):
    """Rows by bucket: those of bucket b are `order[starts[b]:starts[b + 1]]`, ascending."""

    starts: NDArray[np.int32]
    order: NDArray[np.int32]
    of_queries: NDArray[np.int32]  # the bucket of each query


def fill_buckets(keys: Keys, query_keys: Keys) -> Buckets:
    """Sort rows into buckets by key, and tell for other keys in which they would be."""
    bits = max(1, min(len(keys).bit_length(), 28))
    buckets = _bucket_of_each(keys, 64 - bits)
    starts, order = _counting_sort(buckets, 1 << bits)
    return Buckets(starts, order, _bucket_of_each(query_keys, 64 - bits))


@compiled
def _bucket_of_each(keys: Keys, shift: int) -> NDArray[np.int32]:
    golden = np.uint64(0x9E3779B97F4A7C15)
    buckets = np.empty(len(keys), np.int32)
    for row in range(len(keys)):
        mixed = keys[row] * golden
        mixed = (mixed ^ (mixed >> np.uint64(32))) * golden
        buckets[row] = np.int32(mixed >> np.uint64(shift))
    return buckets


@compiled
def _counting_sort(buckets: NDArray[np.int32], num_buckets: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    starts = np.zeros(num_buckets + 1, np.int32)
    for bucket in buckets:
        starts[bucket + 1] += 1
    for bucket in range(num_buckets):
        starts[bucket + 1] += starts[bucket]
    place = starts[:-1].copy()
    order = np.empty(len(buckets), np.int32)
    for row in range(len(buckets)):
        order[place[buckets[row]]] = row
        place[buckets[row]] += 1
    return starts, order
