"""Whether a shard is the one that was planned with: its sha256, once a process, where the recipe asks for it.

An index names no digest a sample, so the whole shard is read: 0.6 to 2 s a gigabyte on a local disk. On a remote store
the reading goes into the local cache where there is one, and is not thrown away.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future

from tokenmill.errors import ManifestError, RunError
from tokenmill.manifests.file_digest import file_digest
from tokenmill.manifests.shard_cache import ShardCache, replaced_message
from tokenmill.manifests.storage import Store

log = logging.getLogger(__name__)
_PART_BYTES = 8 * 2**20


class ShardChecks:
    """Remembers which shards were found to be right; safe to use from several threads."""

    def __init__(self, store: Store, digests: Mapping[str, str], cache: ShardCache | None = None) -> None:
        self._store, self._digests, self._cache = store, digests, cache
        self._verdicts: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def check(self, shard: str) -> None:
        """Read a shard and compare, the first time; raises RunError naming it if it is another, StorageError."""
        with self._lock:
            verdict = self._verdicts.get(shard)
            mine = verdict is None
            if verdict is None:
                verdict = self._verdicts[shard] = Future()
        if mine:
            try:
                self._compare(shard)
            except BaseException as error:
                with self._lock:
                    del self._verdicts[shard]  # a store that is gone may come back, and is asked again
                verdict.set_exception(error)
            else:
                verdict.set_result(None)
        verdict.result()

    def _compare(self, shard: str) -> None:
        expected = self._digests.get(shard)
        if not expected:
            log.warning("%s: the plan names no sha256 for it; it is not checked", shard)
            return
        try:
            if self._cache is not None and self._cache.fetch(shard, expected):
                return
        except ManifestError as error:
            raise RunError(str(error)) from error
        path = self._store.local_path(shard)
        size = self._store.size(shard)
        found = file_digest(path) if path is not None else self._streamed(shard, size)
        if found != expected:
            raise RunError(replaced_message(shard, size))

    def _streamed(self, shard: str, size: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size, _PART_BYTES):
            digest.update(self._store.read_range(shard, start, min(_PART_BYTES, size - start)))
        return digest.hexdigest()
