"""Ranges of remote shards: neighbours in one request, many requests at once, and what is wrong told by name.

A request to an object store takes 10 to 50 ms whatever its length, in which 256 KiB come as well; so ranges that lie
closer together than that are read as one. Retries and time-outs are the store's (docs/storage.md).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store
from tokenmill.train.read_ahead import Threads

GAP_BYTES = 2**18
_BLOCK_BYTES = 8 * 2**20  # longer ones are better read side by side
_PATIENCE_S = 0.5  # for requests that nobody waits for any more

Range: TypeAlias = tuple[int, int]  # start, length
Piece: TypeAlias = bytes | Exception


@dataclass(slots=True)
class Block:
    """Neighbouring ranges that are read together; `members` are their places in the caller's list."""

    start: int
    end: int
    members: list[int] = field(default_factory=list)


def coalesce(ranges: Sequence[Range], gap: int = GAP_BYTES, most: int = _BLOCK_BYTES) -> list[Block]:
    """Group ranges whose gaps are at most `gap` bytes into blocks of at most `most`, unless one alone is longer."""
    blocks: list[Block] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        start, length = ranges[number]
        last = blocks[-1] if blocks else None
        if last is None or start - last.end > gap or max(start + length, last.end) - last.start > most:
            last = Block(start, start)
            blocks.append(last)
        last.end = max(last.end, start + length)
        last.members.append(number)
    return blocks


class RangeReader:
    """Reads ranges of many shards at once, over at most `connections` requests at a time."""

    def __init__(self, store: Store, connections: int) -> None:
        self._store, self._connections = store, connections
        self._pool: Threads | None = None
        self._lock = threading.Lock()

    def fetch(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[Piece]]:
        """Return for each range of each shard its bytes, or the StorageError that says why there are none."""
        jobs = [(shard, block) for shard, ranges in wanted.items() for block in coalesce(ranges)]
        if len(jobs) == 1:
            done = [self._read(shard, wanted[shard], block) for shard, block in jobs]
        else:
            pool = self._threads()
            futures = [pool.submit(partial(self._read, shard, wanted[shard], block)) for shard, block in jobs]
            done = [future.result() for future in futures]
        found: dict[str, list[Piece]] = {shard: [b""] * len(ranges) for shard, ranges in wanted.items()}
        for (shard, block), pieces in zip(jobs, done, strict=True):
            for member, piece in zip(block.members, pieces, strict=True):
                found[shard][member] = piece
        return found

    def close(self) -> None:
        """End the threads; the next reading starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(_PATIENCE_S)

    def __del__(self) -> None:
        pool = self._pool  # of one that was never closed: its threads would wait for ever
        if pool is not None:
            pool.close(0.0)

    def _threads(self) -> Threads:
        with self._lock:
            if self._pool is None:
                self._pool = Threads(self._connections, "shard-ranges")
            return self._pool

    def _read(self, shard: str, ranges: Sequence[Range], block: Block) -> list[Piece]:
        try:
            data = self._store.read_range(shard, block.start, block.end - block.start)
        except StorageError as error:
            return self._one_by_one(shard, [ranges[member] for member in block.members], error)
        places = [(ranges[member][0] - block.start, ranges[member][1]) for member in block.members]
        return [data[start : start + length] for start, length in places]

    def _one_by_one(self, shard: str, ranges: Sequence[Range], error: StorageError) -> list[Piece]:
        """Read what a truncated shard still has."""
        if len(ranges) == 1:
            start, length = ranges[0]
            return [explained(self._store, shard, start + length, error)]
        size = _size_of(self._store, shard)
        if size is None or max(start + length for start, length in ranges) <= size:
            return [error] * len(ranges)
        return [self._read(shard, [one], Block(one[0], sum(one), [0]))[0] for one in ranges]


def explained(store: Store, shard: str, end: int, error: StorageError) -> StorageError:
    """Say what is wrong with a shard that could not be read up to a place that its index names."""
    size = _size_of(store, shard)
    if size is None or end <= size:
        return error
    return StorageError(
        f"{store.url}/{shard}: has {size} bytes, its index names bytes up to {end}: it was truncated or replaced; "
        'run "tokenmill verify --deep" on its folder'
    )


def _size_of(store: Store, shard: str) -> int | None:
    """Return how long a shard is, or None where the store does not say."""
    try:
        return store.size(shard)
    except StorageError:
        return None
