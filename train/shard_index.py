"""Indexes of token shards as arrays: where the arrays of each sample lie, and its segments.

A loader needs 60 bytes a row of an index and the distinct strings of segments, which are scanned once, not the keys,
digests and captions beside them. The indexes used last are kept, up to 256 MiB in all.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.storage import Store
from tokenmill.tokenize.layouts import Scanned, scan_segments
from tokenmill.train import assembly_tables as tables
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
        strings: int32 (N,), place of a row's segments in `segments`; -1 for a sample that could not be tokenized.
        segments: Arrow array of distinct strings.
        scanned: what they say.
        members: int64 (N, 6): offset, items and bytes of an item of the codes, the same of the text ids; 0 bytes for an
            array that is not as numpy writes it.
        end: the first byte behind the last array: a shard that is shorter was cut off.
        num_bytes: taken in memory.
    """

    strings: NDArray[np.int32]
    segments: pa.Array
    scanned: Scanned
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
    (segments,), numbers = table.arrays(["segments"], _NUMBERS)
    codes = segments.indices.fill_null(-1) if segments.null_count else segments.indices
    strings = np.frombuffer(codes.buffers()[1] or b"", np.int32)[codes.offset :][: len(codes)]
    scanned = scan_segments(segments.dictionary)
    ends = numbers[:, [0, 3]] + numbers[:, [1, 4]]
    members = numbers[:, [0, 2, 0, 3, 5, 0]]
    members[:, [2, 5]] = _widths(numbers[:, [1, 4]], numbers[:, [2, 5]])
    num_bytes = members.nbytes + segments.nbytes + scanned.num_bytes
    return ShardIndex(strings, segments.dictionary, scanned, members, int(ends.max(initial=0)), num_bytes)


def _widths(length: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell the bytes of an item from the lengths of arrays; 0 where the array is not as numpy writes it."""
    wide = length - tables.HEADER_BYTES
    return np.where(count < 1, 0, np.where(wide == 2 * count, 2, np.where(wide == 4 * count, 4, 0)))


def index_name(index_of: Mapping[str, str], shard: str) -> str:
    """Return where a shard's index lies; raises ManifestError for a shard that the plan does not know."""
    if shard not in index_of:
        raise ManifestError(f"{shard}: the plan's shards.parquet does not name it")
    return index_of[shard]
