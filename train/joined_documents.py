"""Documents of a block joined with their shards' indexes: where the arrays of each lie, and its segments as a string.

N documents, in the order of the plan.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, SampleError
from tokenmill.manifests.plan_rows import DocumentRows
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.segments import segments_from_json, segments_to_json
from tokenmill.train import assembly_tables as tables
from tokenmill.train.shard_index import ShardIndex

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(slots=True)
class JoinedDocuments:
    """Documents of a block while their shards' indexes are joined to them."""

    shards: tuple[str, ...]
    ends: list[int]
    documents: NDArray[np.int64]
    extents: NDArray[np.int64]
    has_string: NDArray[np.bool_]
    order: NDArray[np.int64]  # documents by shard, and within it as they came
    bounds: NDArray[np.int64]
    _segments: list[Any]  # of the shards that were read: strings of their documents
    _read: list[NDArray[np.int64]]  # and which documents these are

    @classmethod
    def of(cls, placed: DocumentRows) -> JoinedDocuments:
        distinct, files = np.unique(placed.shard, return_inverse=True)
        documents = np.zeros((len(placed), tables.DOCUMENT_COLUMNS), np.int64)
        documents[:, tables.FILE], documents[:, tables.LAYOUT] = files, -1
        documents[:, tables.START], documents[:, tables.LENGTH] = placed.start, placed.length
        order = np.argsort(files, kind="stable")
        return cls(
            shards=tuple(placed.shards[place] for place in distinct),
            ends=[0] * len(distinct),
            documents=documents,
            extents=np.zeros((len(placed), 2 * tables.EXTENTS), np.int64),
            has_string=np.zeros(len(placed), np.bool_),
            order=order,
            bounds=np.searchsorted(files[order], np.arange(len(distinct) + 1)),
            _segments=[],
            _read=[],
        )

    def add(self, place: int, placed: DocumentRows, index: ShardIndex) -> None:
        """Take what a shard's index says of its documents; rows that it does not have are left without."""
        own = self.order[self.bounds[place] : self.bounds[place + 1]]
        samples = placed.sample[own]
        is_there = (samples >= 0) & (samples < len(index.members))
        own, samples = own[is_there], samples[is_there]
        members = index.members[samples]
        for column, (at, length, count) in ((tables.CODES, members[:, :3].T), (tables.TEXT_IDS, members[:, 3:].T)):
            self.documents[own, column + tables.AT] = at
            self.documents[own, column + tables.COUNT] = count
            self.documents[own, column + tables.WIDTH] = _widths(length, count)
        self.ends[place] = index.end
        self._segments.append(index.segments.take(_arrow(samples.astype(np.int64))))
        self._read.append(own)

    def strings(self, placed: DocumentRows) -> pa.Array:
        """Give each document's segments as a string, "" where they are not known; fills `has_string`."""
        import pyarrow as pa

        known = [part.cast(pa.large_string()) for part in self._segments]
        strings = pa.concat_arrays([*known, _empty_string()])
        read = np.concatenate([*self._read, np.empty(0, np.int64)])
        self.has_string[read] = True
        if strings.null_count:
            self.has_string[read] = strings.is_valid().to_pylist()[:-1]
            strings = strings.fill_null("")
        places = np.full(len(placed), len(strings) - 1, np.int64)
        places[read] = np.arange(len(read))
        strings = strings.take(_arrow(places))
        runs = np.flatnonzero((placed.frames > 0) & self.has_string)
        if len(runs):
            told = strings.to_pylist()
            for row in runs.tolist():
                told[row] = _taken(told[row], int(placed.frame[row]), int(placed.frames[row]))
            strings = pa.array(told, pa.large_string())
        return strings


def _empty_string() -> pa.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(np.zeros(2, np.int64)), pa.py_buffer(b"")])


def _arrow(places: NDArray[np.int64]) -> pa.Array:
    """Give whole numbers to Arrow by their memory: `pa.array` would import pandas (half a second) to look at them."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(np.ascontiguousarray(places))])


def _widths(length: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell the bytes of an item from the lengths of arrays; 0 where the array is not as numpy writes it."""
    wide = length - tables.HEADER_BYTES
    return np.where(count < 1, 0, np.where(wide == 2 * count, 2, np.where(wide == 4 * count, 4, 0)))


@lru_cache(maxsize=65_536)
def _taken(segments: str, frame: int, frames: int) -> str:
    """Give the segments of a run of frames, "" where there is no such run."""
    try:
        taken = take_frames(segments_from_json(json.loads(segments)), frame, frames)
    except (SampleError, ManifestError, ValueError):
        return ""
    return json.dumps(segments_to_json(taken))
