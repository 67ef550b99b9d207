"""Where the bytes of token shards come from: an open local file, or ranges of a remote object.

The loader's compiled part reads from a file's descriptor itself, without the interpreter; ranges are for what lies
elsewhere, and come as bytes or as the error that says why not, one for each range. A remote shard becomes a local file
as soon as the cache holds it (docs/loader.md).
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from tokenmill.errors import StorageError
from tokenmill.manifests.shard_cache import ShardCache
from tokenmill.manifests.storage import Store
from tokenmill.settings_loader import LoaderSettings
from tokenmill.train.shard_checks import ShardChecks
from tokenmill.train.shard_downloads import Downloads
from tokenmill.train.shard_ranges import Piece, Range, RangeReader

FILES_KEPT = 256
_TEND_S = 10.0


class ShardFile:
    """An open local file, with `memory_map` also mapped. Its descriptor and memory live as long as somebody holds this
    object, so nobody reads from a number or an address that has become another file's.

    `address` is where its first `mapped` bytes lie in memory, 0 where it is not mapped (empty, or the system refused).
    """

    __slots__ = ("_descriptor", "_map", "address", "mapped")

    def __init__(self, path: Path, memory_map: bool = False) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._map, self.address, self.mapped = None, 0, 0
        if memory_map:
            with suppress(OSError, ValueError):
                self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        if self._map is not None:
            self.address, self.mapped = np.frombuffer(self._map, np.uint8).ctypes.data, len(self._map)

    @property
    def size(self) -> int:
        """Bytes of the file as it is now."""
        return os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        return self._descriptor

    @property
    def unlinked(self) -> bool:
        """Whether the file has no name any more, and only takes room because we hold it."""
        return os.fstat(self._descriptor).st_nlink == 0

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class ShardBytes(Protocol):
    """Reads shards, named by their paths below the root; safe to use from several threads.

    All raise RunError for a shard that was found not to be the planned one.
    """

    def file(self, shard: str) -> ShardFile | None:
        """Return the shard as an open local file, or None where there are only ranges; raises StorageError."""

    def ranges(self, shard: str, ranges: Sequence[Range]) -> list[Piece]:
        """Return the bytes of each (start, length), or why they could not be had."""

    def fetch(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[Piece]]:
        """Do the same for several shards at once."""

    def close(self) -> None:
        """End every thread; the next reading starts new ones."""


class StoreBytes:
    """Reads shards where they lie in a store, or from the cache, with the store's own retries and time-outs.

    `digests` are the sha256 of the shards, as far as they are known: the cache and the checks go by them.
    """

    def __init__(
        self, store: Store, digests: Mapping[str, str] | None = None, settings: LoaderSettings | None = None
    ) -> None:
        settings = settings or LoaderSettings()
        self._store, self._digests = store, digests or {}
        self._reader = RangeReader(store, settings.connections)
        cached = settings.cache is not None and not store.is_local
        self._cache = ShardCache(store, settings.cache_folder, settings.cache_bytes) if cached else None
        self._downloads = Downloads(self._cache) if self._cache else None
        self._checks = ShardChecks(store, self._digests, self._cache) if settings.check_digests else None
        self._memory_map = settings.memory_map
        self._files: OrderedDict[str, ShardFile] = OrderedDict()
        self._used: set[str] = set()
        self._tended_s = time.monotonic()
        self._lock = threading.Lock()

    def file(self, shard: str) -> ShardFile | None:
        with self._lock:
            self._tend()
            found = self._files.get(shard)
            if found is not None:
                self._files.move_to_end(shard)
                self._used.add(shard)
                return found
        if self._checks is not None:
            self._checks.check(shard)
        found = self._opened(shard)
        if found is None:
            return None
        with self._lock:
            self._files[shard] = found
            while len(self._files) > FILES_KEPT:
                self._files.popitem(last=False)
        return found

    def ranges(self, shard: str, ranges: Sequence[Range]) -> list[Piece]:
        return self.fetch({shard: ranges})[shard]

    def fetch(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[Piece]]:
        if self._checks is not None:
            for shard in wanted:
                self._checks.check(shard)
        return self._reader.fetch(wanted)

    def close(self) -> None:
        if self._downloads is not None:
            self._downloads.close()
        self._reader.close()

    def _opened(self, shard: str) -> ShardFile | None:
        path = self._store.local_path(shard) if self._store.is_local else None
        if path is None:
            return self._cached(shard)
        try:
            return ShardFile(path, self._memory_map)
        except FileNotFoundError:
            raise StorageError(f"{path}: not there (cannot open it)") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot open it: {error.strerror}") from error

    def _cached(self, shard: str) -> ShardFile | None:
        """Open a shard of the cache, or have it fetched and leave it to ranges until it is there."""
        sha256 = self._digests.get(shard)
        if self._cache is None or self._downloads is None or not sha256:
            return None
        path = self._cache.find(sha256)
        if path is not None:
            try:
                return ShardFile(path, self._memory_map)
            except FileNotFoundError:  # it went out between the two
                pass
            except OSError as error:
                self._cache.give_up(shard, error)
                return None
        self._downloads.ask(shard, sha256)
        return None

    def _tend(self) -> None:
        """Now and then tell the cache what is in use, and let go of files that went out of it."""
        if self._cache is None or time.monotonic() - self._tended_s < _TEND_S:
            return
        self._tended_s = time.monotonic()
        for shard, file in list(self._files.items()):
            if file.unlinked:
                del self._files[shard]
            elif shard in self._used:
                self._cache.touch(self._digests[shard])
        self._used.clear()
