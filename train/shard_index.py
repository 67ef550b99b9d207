"""Indexes of token shards as arrays: where the arrays of each sample lie, and its segments.

A loader needs 60 bytes a row of an index (and the strings of distinct segments), not the keys, digests and captions
beside them. The indexes used last are kept, up to 256 MiB in all.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.storage import Store
from tokenmill.train.read_ahead import ahead

if TYPE_CHECKING:
    import pyarrow as pa

_BYTES_KEPT = 2**28
_AT_ONCE = 8  # of a remote store
_NUMBERS = ("codes_offset", "codes_length", "num_codes", "text_offset", "text_length", "num_text")


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """An index of N rows.

    Attributes:
        segments: Arrow dictionary of strings (N,), null for a sample that could not be tokenized.
        members: int64 (N, 6): offset, bytes and items of the codes, offset, bytes and items of the text ids.
        end: the first byte behind the last array: a shard that is shorter was cut off.
        num_bytes: taken in memory.
    """

    segments: pa.DictionaryArray
    members: NDArray[np.int64]
    end: int
    num_bytes: int


class ShardIndexes:
    """Reads indexes of a plan's shards, each once while it is in use; safe to use from several threads."""

    def __init__(self, store: Store, index_of: Mapping[str, str]) -> None:
        self._store, self._index_of = store, index_of
        self._kept: OrderedDict[str, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, shard: str) -> ShardIndex:
        """Return a shard's index; raises StorageError if it is not there, ManifestError if it is another one."""
        with self._lock:
            if shard in self._kept:
                self._kept.move_to_end(shard)
                return self._kept[shard]
        index = read_index(self._store, self._index_of, shard)
        with self._lock:
            self._kept[shard] = index
            self._forget()
        return index

    def prepare(self, shards: Sequence[str]) -> None:
        """Read those of a remote store side by side before they are asked for one by one, which tells what is wrong."""
        if self._store.is_local:
            return
        with self._lock:
            missing = [shard for shard in shards if shard not in self._kept]
        if len(missing) > 1:
            with closing(ahead(self._try, missing, threads=_AT_ONCE, most=2 * _AT_ONCE, timeout_s=None)) as indexes:
                deque(indexes, 0)

    def _try(self, shard: str) -> None:
        with suppress(ManifestError, StorageError):
            self.of(shard)

    def kept(self) -> list[ShardIndex]:
        """Return what is in memory."""
        with self._lock:
            return list(self._kept.values())

    def _forget(self) -> None:
        held = sum(index.num_bytes for index in self._kept.values())
        while held > _BYTES_KEPT and len(self._kept) > 1:
            held -= self._kept.popitem(last=False)[1].num_bytes


def read_index(store: Store, index_of: Mapping[str, str], shard: str) -> ShardIndex:
    """Read a shard's index; raises as `ShardIndexes.of`."""
    table = open_named_table(store, index_name(index_of, shard))
    (segments,) = table.codes(["segments"])
    numbers = table.frame(_NUMBERS)
    members = np.stack([numbers[name].fill_null(0).cast(pl.Int64).to_numpy() for name in _NUMBERS], axis=1)
    ends = members[:, [0, 3]] + members[:, [1, 4]]
    return ShardIndex(segments, members, int(ends.max(initial=0)), members.nbytes + segments.nbytes)


def index_name(index_of: Mapping[str, str], shard: str) -> str:
    """Return where a shard's index lies; raises ManifestError for a shard that the plan does not know."""
    if shard not in index_of:
        raise ManifestError(f"{shard}: the plan's shards.parquet does not name it")
    return index_of[shard]
