"""Reading one tokenized sample: an index row, one ranged read, two arrays.

A shard's index is read once and kept while its packs come (least recently used first out); the three members of a
sample stand side by side in the archive, so one read of their common range gives all of it and no tar is ever parsed.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, SampleError, StorageError
from tokenmill.manifests.plans import read_named_table
from tokenmill.manifests.storage import Store
from tokenmill.tokenize.segments import Segment, segments_from_json
from tokenmill.train.shard_index import index_name
from tokenmill.train.shard_ranges import explained

_INDEXES_KEPT = 64
_COLUMNS = ("key", "modality", "segments", "codes_offset", "codes_length", "text_offset", "text_length")


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenized sample as it lies in the archive, before any template."""

    key: str
    modality: str
    segments: list[Segment]
    text_ids: NDArray[np.integer[Any]]
    codes: NDArray[np.integer[Any]]


class SampleReader:
    """Reads samples of any shard; safe to use from several threads."""

    def __init__(self, store: Store, index_of: Mapping[str, str]) -> None:
        self._store = store
        self._index_of = index_of
        self._indexes: OrderedDict[str, pl.DataFrame] = OrderedDict()
        self._lock = threading.Lock()

    def row(self, shard: str, sample: int) -> dict[str, Any]:
        """Return a sample's index row; raises ManifestError or StorageError, or SampleError if it has no such row."""
        index = self._index(shard)
        if not 0 <= sample < len(index):
            raise SampleError("not_in_index", f"row {sample} of an index of {len(index)}")
        return index.row(sample, named=True)

    def key(self, shard: str, sample: int) -> str:
        """Return a sample's key, "" where its index cannot be read."""
        try:
            return str(self.row(shard, sample)["key"])
        except (ManifestError, StorageError, SampleError):
            return ""

    def read(self, shard: str, sample: int) -> Sample:
        """Return a sample; raises as `row`, and SampleError (`unreadable`) for bytes that are not arrays."""
        row = self.row(shard, sample)
        if row["segments"] is None:
            raise SampleError("not_tokenized", "its index has no segments for it")
        spans = {name: (row[f"{name}_offset"] or 0, row[f"{name}_length"] or 0) for name in ("codes", "text")}
        start = min((offset for offset, length in spans.values() if length), default=0)
        end = max((offset + length for offset, length in spans.values() if length), default=0)
        try:
            data = memoryview(self._store.read_range(shard, start, end - start))
        except StorageError as error:
            raise explained(self._store, shard, end, error) from error
        arrays = {name: _array(data[at - start : at - start + length]) for name, (at, length) in spans.items()}
        segments = segments_from_json(json.loads(row["segments"]))
        return Sample(row["key"], row["modality"], segments, arrays["text"], arrays["codes"])

    def _index(self, shard: str) -> pl.DataFrame:
        with self._lock:
            if shard not in self._indexes:
                name = index_name(self._index_of, shard)
                self._indexes[shard] = read_named_table(self._store, name, _COLUMNS)
                while len(self._indexes) > _INDEXES_KEPT:
                    self._indexes.popitem(last=False)
            self._indexes.move_to_end(shard)
            return self._indexes[shard]


def _array(data: memoryview) -> NDArray[np.integer[Any]]:
    """Give the array in some bytes of `.npy`, as one row, without copying it."""
    if not len(data):
        return np.empty(0, np.uint16)
    try:
        long = data[6] > 1  # the header's length has 4 bytes from version 2 on
        start = 12 + int.from_bytes(data[8:12], "little") if long else 10 + int.from_bytes(data[8:10], "little")
        length, dtype = _header(bytes(data[:start]))
        return np.frombuffer(data, dtype, length, start)
    except (ValueError, EOFError, OSError, IndexError) as error:
        raise SampleError("unreadable", f"not an array of ids: {error}") from error


@lru_cache(maxsize=4096)
def _header(data: bytes) -> tuple[int, np.dtype[Any]]:
    """Parse the header of an `.npy`; remembered, since parsing takes longer than reading the sample (60 µs).

    Shards of others may hold grids and signed numbers: what they are was checked when they were indexed.
    """
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if not 1 <= len(shape) <= 3 or dtype.kind not in "ui" or (is_fortran and len(shape) > 1):
        raise ValueError(f"an array of shape {shape} of {dtype}")
    return math.prod(shape), dtype
