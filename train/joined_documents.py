"""Documents of a block joined with their shards' indexes: where the arrays of each lie, and its segments as a string.

N documents, in the order of the plan.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, SampleError
from tokenmill.manifests.plan_rows import DocumentRows
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.layouts import Scanned, distinct_of, join_scanned, scan_segments
from tokenmill.tokenize.segments import segments_from_json, segments_to_json
from tokenmill.train import assembly_tables as tables
from tokenmill.train.shard_index import ShardIndex

if TYPE_CHECKING:
    import pyarrow as pa

_FROM_INDEX = 3  # columns of a member that its index tells: AT, COUNT, WIDTH


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
    _scanned: list[Scanned]  # of the shards that were read: strings of their documents
    _read: list[NDArray[np.int64]]  # and which documents these are
    _runs: dict[int, str]  # documents of some frames of a clip, with the strings of the whole clip

    @classmethod
    def of(cls, placed: DocumentRows) -> JoinedDocuments:
        distinct, files = distinct_of(placed.shard.astype(np.int64))
        documents = np.zeros((len(placed), tables.DOCUMENT_COLUMNS), np.int64)
        documents[:, tables.FILE], documents[:, tables.LAYOUT] = files, -1
        documents[:, tables.START], documents[:, tables.LENGTH] = placed.start, placed.length
        sortable = files.astype(np.uint16) if len(distinct) <= 2**16 else files  # which numpy sorts by digits
        order = np.argsort(sortable, kind="stable")
        return cls(
            shards=tuple(placed.shards[place] for place in distinct),
            ends=[0] * len(distinct),
            documents=documents,
            extents=np.zeros((len(placed), 2 * tables.EXTENTS), np.int64),
            has_string=np.zeros(len(placed), np.bool_),
            order=order,
            bounds=np.searchsorted(files[order], np.arange(len(distinct) + 1)),
            _scanned=[],
            _read=[],
            _runs={},
        )

    def add(self, place: int, placed: DocumentRows, index: ShardIndex) -> None:
        """Take what a shard's index says of its documents; rows that it does not have are left without."""
        own = self.order[self.bounds[place] : self.bounds[place + 1]]
        samples = placed.sample[own]
        is_there = (samples >= 0) & (samples < len(index.members))
        if not is_there.all():
            own, samples = own[is_there], samples[is_there]
        members = index.members[samples]
        self.documents[own, tables.CODES : tables.CODES + _FROM_INDEX] = members[:, :_FROM_INDEX]
        self.documents[own, tables.TEXT_IDS : tables.TEXT_IDS + _FROM_INDEX] = members[:, _FROM_INDEX:]
        self.ends[place] = index.end
        self._add_strings(own, index.strings[samples], placed.frames[own] > 0, index)

    def _add_strings(
        self, own: NDArray[np.int64], strings: NDArray[np.int32], is_run: NDArray[np.bool_], index: ShardIndex
    ) -> None:
        """Take the strings of documents, by their places in an index."""
        is_known = strings >= 0
        if is_run.any():
            for document, string in zip(own[is_run & is_known].tolist(), strings[is_run & is_known], strict=True):
                self._runs[document] = index.segments[int(string)].as_py()
            is_known &= ~is_run
        if not is_known.all():
            own, strings = own[is_known], strings[is_known]
        self._scanned.append(index.scanned.taken(strings))
        self._read.append(own)

    def scanned(self, placed: DocumentRows) -> tuple[Scanned, NDArray[np.int64]]:
        """Give all documents' strings and the place of each document's among them; fills `has_string`."""
        runs = list(self._runs)
        taken = [_taken(self._runs[row], int(placed.frame[row]), int(placed.frames[row])) for row in runs]
        scanned = join_scanned([*self._scanned, scan_segments(_strings(taken))])
        read = np.concatenate([*self._read, np.array(runs, np.int64)])
        places = np.full(len(placed), -1, np.int64)
        places[read] = np.arange(len(read))
        self.has_string[read] = True
        return scanned, places


def _strings(texts: Sequence[str]) -> pa.Array:
    """Give texts to Arrow by their memory: `pa.array` would import pandas (0.15 s of a start) to look at them."""
    import pyarrow as pa

    data = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    return pa.Array.from_buffers(pa.large_string(), len(data), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(data))])


@lru_cache(maxsize=65_536)
def _taken(segments: str, frame: int, frames: int) -> str:
    """Give the segments of a run of frames, "" where there is no such run."""
    try:
        taken = take_frames(segments_from_json(json.loads(segments)), frame, frames)
    except (SampleError, ManifestError, ValueError):
        return ""
    return json.dumps(segments_to_json(taken))
