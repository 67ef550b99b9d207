"""Shards on their way into the local cache, while the loader goes on reading them by ranges.

Waiting for whole shards would delay the first batch by gigabytes, so nothing ever waits here: what has come is used
from then on. Two at a time a process, and one of a node for each shard (the cache's locks). A shard that turns out not
to be the planned one is told to whoever asks for it next.
"""

from __future__ import annotations

import logging
import queue
import threading

from tokenmill.errors import ManifestError, RunError, StorageError
from tokenmill.manifests.shard_cache import ShardCache

log = logging.getLogger(__name__)
_AT_ONCE = 2


class Downloads:
    """Fetches shards in the background; safe to use from several threads."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._asked: set[str] = set()
        self._refused: dict[str, str] = {}
        self._queue: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def ask(self, shard: str, sha256: str) -> None:
        """Have a shard fetched, once; raises RunError if it came and was not the planned one."""
        with self._lock:
            if shard in self._refused:
                raise RunError(self._refused[shard])
            if shard in self._asked:
                return
            self._asked.add(shard)
            self._queue.put((shard, sha256))
            if len(self._threads) < _AT_ONCE:
                # Daemons: a process that ends does not wait for a shard, and what is half there counts for nothing.
                thread = threading.Thread(target=self._work, args=(self._stop,), name="shard-download", daemon=True)
                self._threads.append(thread)
                thread.start()

    def forget(self, shard: str) -> None:
        """Let a shard that went out of the cache be fetched again when it is asked for."""
        with self._lock:
            self._asked.discard(shard)

    def close(self) -> None:
        """Give up what is under way and wait for the threads; asking again starts new ones."""
        with self._lock:
            threads, self._threads = self._threads, []
            self._stop.set()
            for _ in threads:
                self._queue.put(None)
        for thread in threads:
            thread.join()
        with self._lock:
            self._stop = threading.Event()
            self._queue = queue.SimpleQueue()
            self._asked.clear()

    def _work(self, stop: threading.Event) -> None:
        waiting = self._queue
        while (item := waiting.get()) is not None and not stop.is_set():
            shard, sha256 = item
            try:
                here = self._cache.fetch(shard, sha256, wanted=lambda: not stop.is_set())
                log.debug("%s: %s", shard, "in the cache" if here else "not cached")
            except ManifestError as error:
                self._refused[shard] = str(error)
            except (StorageError, OSError) as error:
                log.warning("%s: not cached (%s); it is read by ranges", shard, error)
