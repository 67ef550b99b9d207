"""A file of a remote store as Python's own kind: seek, read, and blocks that grow while the reading goes straight on.

The first block is 256 KiB (a table's footer is not worth more), each that follows directly is twice as long up to
8 MiB, and the next comes while the last is used. At most 16 MiB wait in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tokenmill.manifests.storage_errors import ShortReadError

_FIRST_BYTES = 2**18
_MOST_BYTES = 8 * 2**20


class RangedFile(io.RawIOBase):
    """Reads `size` bytes through `fetch(start, length)`."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._at = 0
        self._block, self._start = b"", 0
        self._next: tuple[int, Future[bytes]] | None = None
        self._length = _FIRST_BYTES
        self._pool = ThreadPoolExecutor(1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"a place before the beginning: {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._block):
            self._take_block()
        piece = memoryview(self._block)[self._at - self._start :][: len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=True, cancel_futures=True)
        super().close()

    def _take_block(self) -> None:
        """Bring the block at the place of reading, and send for the one behind it if it goes straight on."""
        straight = self._at == self._start + len(self._block)
        self._length = min(self._length * 2, _MOST_BYTES) if straight and self._block else _FIRST_BYTES
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == self._at:
            self._block = ahead[1].result()
        else:
            self._block = self._read(self._at, self._length)
        self._start = self._at
        behind = self._start + len(self._block)
        if straight and behind < self._size:
            self._next = behind, self._pool.submit(self._read, behind, min(self._length * 2, _MOST_BYTES))

    def _read(self, start: int, length: int) -> bytes:
        length = min(length, self._size - start)
        data = self._fetch(start, length)
        if len(data) != length:
            raise ShortReadError
        return data
