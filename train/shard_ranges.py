"""Ranges of remote shards: neighbours in one request, many requests at once, and what is wrong told by name.

A request to an object store takes 10 to 50 ms whatever its length, in which 256 KiB come as well; so ranges that lie
closer together than that are read as one. Retries and time-outs are the store's (docs/storage.md).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store

GAP_BYTES = 2**18
_BLOCK_BYTES = 8 * 2**20  # longer ones are better read side by side

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
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def fetch(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[Piece]]:
        """Return for each range of each shard its bytes, or the StorageError that says why there are none."""
        jobs = [(shard, block) for shard, ranges in wanted.items() for block in coalesce(ranges)]
        if len(jobs) == 1:
            done = [self._read(shard, wanted[shard], block) for shard, block in jobs]
        else:
            pool = self._threads()
            futures = [pool.submit(self._read, shard, wanted[shard], block) for shard, block in jobs]
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
            pool.shutdown(wait=True, cancel_futures=True)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._connections, thread_name_prefix="shard-ranges")
            return self._pool

    def _read(self, shard: str, ranges: Sequence[Range], block: Block) -> list[Piece]:
        try:
            data = self._store.read_range(shard, block.start, block.end - block.start)
        except StorageError as error:
            return self._one_by_one(shard, [ranges[member] for member in block.members], error)
        places = [(ranges[member][0] - block.start, ranges[member][1]) for member in block.members]
        return [data[start : start + length] for start, length in places]

    def _one_by_one(self, shard: str, ranges: Sequence[Range], error: StorageError) -> list[Piece]:
        """Read what a truncated shard still has; a store that cannot be asked for the size is not asked for more."""
        try:
            size = self._store.size(shard)
        except StorageError as why:
            return [why] * len(ranges)
        pieces: list[Piece] = []
        for start, length in ranges:
            if start + length > size:
                pieces.append(StorageError(truncated_message(f"{self._store.url}/{shard}", size, start + length)))
            elif len(ranges) == 1:
                pieces.append(error)
            else:
                pieces += self._read(shard, [(start, length)], Block(start, start + length, [0]))
        return pieces


def truncated_message(shard: str, size: int, end: int) -> str:
    """Say that a shard ends before a place that its index names."""
    return (
        f"{shard}: has {size} bytes, its index names bytes up to {end}: it was truncated or replaced; "
        'run "tokenmill verify --deep" on its folder'
    )
