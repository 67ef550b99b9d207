"""Made rows with near copies, and the greedy result by comparing everything with everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def flipped(hashes, bits, generator):
    """Flip up to `bits` random bits of each hash."""
    for _ in range(bits):
        hashes = hashes ^ (np.uint64(1) << generator.integers(0, 64, len(hashes), dtype=np.uint64))
    return hashes


def made_hashes(count, copies, bits, seed=0):
    """Random hashes of which `copies` are within `bits` of another, in random order."""
    generator = np.random.default_rng(seed)
    originals = generator.integers(0, 2**64, count - copies, dtype=np.uint64)
    near = flipped(originals[generator.integers(0, len(originals), copies)], bits, generator)
    return generator.permutation(np.concatenate([originals, near]))


def chain_of_hashes(length, bits, seed=0):
    """A slow pan: each hash within `bits` of the one before, far from those long before."""
    generator = np.random.default_rng(seed)
    steps = flipped(np.zeros(length, np.uint64), bits, generator)
    return np.bitwise_xor.accumulate(steps)


def greedy_leaders(num_rows: int, near: Callable) -> np.ndarray:
    """Take rows in order: `near(row, kept)` tells which of the kept ones are near a row."""
    kept, num_kept = np.empty(num_rows, np.int64), 0
    leaders = np.arange(num_rows)
    for row in range(num_rows):
        found = near(row, kept[:num_kept])
        if found.any():
            leaders[row] = kept[found.argmax()]
        else:
            kept[num_kept] = row
            num_kept += 1
    return leaders


def greedy_leaders_of_blocks(num_rows: int, near: Callable) -> np.ndarray:
    """The same, where `near(rows)` compares a block of rows with all at once."""
    kept = np.zeros(num_rows, bool)
    leaders = np.arange(num_rows)
    for start in range(0, num_rows, 500):
        rows = np.arange(start, min(start + 500, num_rows))
        for row, is_near in zip(rows, near(rows), strict=True):
            found = is_near[:row] & kept[:row]
            kept[row] = not found.any()
            leaders[row] = row if kept[row] else found.argmax()
    return leaders


def greedy_hash_leaders(hashes, distance):
    return greedy_leaders(len(hashes), lambda row, kept: np.bitwise_count(hashes[kept] ^ hashes[row]) <= distance)


def map_backwards(function: Callable, parts: Iterable) -> Iterator:
    """Apply `function` to the last part first, and to every part twice, as after a worker's death."""
    for part in reversed(list(parts)):
        function(part)
        yield function(part)
