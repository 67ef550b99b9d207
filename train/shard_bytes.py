"""Where the bytes of token shards come from: an open local file, or ranges of a remote object.

The loader's compiled part reads from a file's descriptor itself, without the interpreter; ranges are for what lies
elsewhere, and come as bytes or as the error that says why not, one for each range.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store

_FILES_KEPT = 256


class ShardFile:
    """An open local file. Its descriptor lives as long as somebody holds this object, so nobody reads from a number
    that has become another file's.
    """

    __slots__ = ("_descriptor", "size")

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        return self._descriptor

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class ShardBytes(Protocol):
    """Reads shards, named by their paths below the root; safe to use from several threads."""

    def file(self, shard: str) -> ShardFile | None:
        """Return the shard as an open local file, or None where there are only ranges; raises StorageError."""

    def ranges(self, shard: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
        """Return the bytes of each (start, length), or why they could not be had."""


class StoreBytes:
    """Reads shards where they lie in a store, with the store's own retries."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: OrderedDict[str, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def file(self, shard: str) -> ShardFile | None:
        path = self._store.local_path(shard)
        if path is None:
            return None
        with self._lock:
            if shard not in self._files:
                self._files[shard] = _opened(path)
                while len(self._files) > _FILES_KEPT:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard]

    def ranges(self, shard: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
        try:
            return list(self._store.read_ranges(shard, ranges))
        except StorageError as error:
            return [error] if len(ranges) == 1 else [self.ranges(shard, [one])[0] for one in ranges]


def _opened(path: Path) -> ShardFile:
    try:
        return ShardFile(path)
    except FileNotFoundError:
        raise StorageError(f"{path}: not there (cannot open it)") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot open it: {error.strerror}") from error
