"""Many small records in memory, compressed in blocks: a fourth of the room, and any one of them still at hand.

Neighbours look alike, so a block of 64 records (50 KB) compresses to some 15 KB; taking one out of a block that is not
at hand costs 0.1 ms, and the 64 blocks last used stay open for those who walk in order.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pyarrow as pa

_RECORDS_A_BLOCK = 64
_BLOCKS_OPEN = 64


class PackedRecords:
    """An append-only list of byte strings; safe to read from several threads."""

    def __init__(self) -> None:
        self._firsts: list[int] = []  # the place of each block's first record
        self._blocks: list[tuple[bytes, tuple[int, ...]]] = []  # compressed, and the borders of its records
        self._length = 0
        self._codec = pa.Codec("zstd", compression_level=1)
        self._open: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def extend(self, records: Sequence[bytes]) -> None:
        """Append some records; they are compressed among themselves, so bring many at once."""
        for start in range(0, len(records), _RECORDS_A_BLOCK):
            block = records[start : start + _RECORDS_A_BLOCK]
            self._firsts.append(self._length)
            borders = (0, *accumulate(len(record) for record in block))
            packed = self._codec.compress(b"".join(block))
            # Copied: asked for bytes at once, Arrow shrinks a buffer of 50 KB and leaves a hole behind each block.
            self._blocks.append((packed.to_pybytes(), borders))
            self._length += len(block)

    def __getitem__(self, place: int) -> bytes:
        if not 0 <= place < self._length:
            raise IndexError(place)
        number = bisect_right(self._firsts, place) - 1
        borders = self._blocks[number][1]
        inside = place - self._firsts[number]
        return self._block(number)[borders[inside] : borders[inside + 1]]

    def _block(self, number: int) -> bytes:
        with self._lock:
            data = self._open.pop(number, None)
            if data is None:
                packed, borders = self._blocks[number]
                data = self._codec.decompress(packed, decompressed_size=borders[-1], asbytes=True)
            self._open[number] = data
            while len(self._open) > _BLOCKS_OPEN:
                self._open.popitem(last=False)
        return data


def pieces_of(sizes: Sequence[int], *, most: int, most_bytes: int) -> list[tuple[int, int]]:
    """Cut a row of sizes into ranges of at most `most` items and (unless one is larger) `most_bytes` bytes."""
    borders, number, total = [0], 0, 0
    for index, size in enumerate(sizes):
        if number and (number == most or total + size > most_bytes):
            borders.append(index)
            number = total = 0
        number, total = number + 1, total + size
    return list(pairwise([*borders, len(sizes)])) if sizes else []
