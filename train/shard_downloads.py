"""Shards on their way into the local cache, while the loader goes on reading them by ranges.

Waiting for whole shards would delay the first batch by gigabytes, so nothing ever waits here: what has come is used
from then on. Two at a time a process, and one of a node for each shard (the cache's locks). A shard that turns out not
to be the planned one is told to whoever asks for it next. A process that ends does not wait for a download either.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

from tokenmill.errors import ManifestError, RunError, StorageError
from tokenmill.manifests.shard_cache import ShardCache
from tokenmill.train.read_ahead import Threads

log = logging.getLogger(__name__)
_AT_ONCE = 2


class Downloads:
    """Fetches shards in the background; safe to use from several threads."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._asked: set[str] = set()
        self._refused: dict[str, str] = {}
        self._threads: Threads | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def ask(self, shard: str, sha256: str) -> None:
        """Have a shard fetched unless it is on its way or could not be kept; raises RunError if it was another one."""
        with self._lock:
            if shard in self._refused:
                raise RunError(self._refused[shard])
            if shard in self._asked:
                return
            self._asked.add(shard)
            if self._threads is None:
                self._threads, self._stop = Threads(_AT_ONCE, "shard-download"), threading.Event()
            self._threads.submit(partial(self._fetch, shard, sha256, self._stop))

    def close(self) -> None:
        """Give up what is under way; asking again begins anew."""
        with self._lock:
            threads, self._threads = self._threads, None
            self._stop.set()
            self._asked.clear()
        if threads is not None:
            threads.close()

    def _fetch(self, shard: str, sha256: str, stop: threading.Event) -> None:
        try:
            if self._cache.fetch(shard, sha256, wanted=lambda: not stop.is_set()):
                with self._lock:
                    self._asked.discard(shard)  # should it go out of the cache, it is fetched again
        except ManifestError as error:
            log.error("%s", error)
            with self._lock:
                self._refused[shard] = str(error)
        except StorageError as error:
            log.warning("%s: not cached (%s); it is read by ranges", shard, error)
