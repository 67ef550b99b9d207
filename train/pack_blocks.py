"""Stretches of a plan made ready for the compiled assembly: documents joined with their shards' indexes, laid out.

A window has up to 10^5 documents; joining all before the first step would make a resume wait. So the first block after
a seek has 512 documents and each that follows directly twice as many, up to 16,384. Four blocks are kept.

N documents, P packs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, SampleError, StorageError
from tokenmill.manifests.plan_rows import DocumentRows, PlanWindow
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.layouts import Layouts, Scanned, lay_out_scanned, scan_segments
from tokenmill.tokenize.segments import segments_from_json, segments_to_json
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train import assembly_kernel as kernel
from tokenmill.train.shard_index import ShardIndex, ShardIndexes

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST_DOCUMENTS, _MOST_DOCUMENTS = 512, 16_384
_BLOCKS_KEPT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Packs [first_pack, end_pack) of a plan, of one window; `first_row` is its first document's row there.

    Attributes:
        rows: int64 (P + 1,), documents of a pack are [rows[p], rows[p + 1]), from 0 on.
        documents, extents: int64 (N, 14) and (N, 8), as the kernel has them; FILE is a place in `shards`.
        offsets, parts, marker_ids: layouts of the documents.
        shards, ends: the archives, and the first byte behind the last array of each (0: its index is not there).
        scratch_bytes: what the largest document takes to read.
    """

    first_pack: int
    end_pack: int
    window: PlanWindow
    first_row: int
    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    extents: NDArray[np.int64]
    offsets: NDArray[np.int64]
    parts: NDArray[np.int32]
    marker_ids: NDArray[np.int32]
    shards: tuple[str, ...]
    ends: tuple[int, ...]
    scratch_bytes: int


class PackBlocks:
    """Gives the block that a pack is in; safe to use from several threads.

    `waits(shard)` is told which index is being read.
    """

    def __init__(self, plan: Plan, vocabulary: Vocabulary, indexes: ShardIndexes, waits: Callable[[str], None]) -> None:
        self._plan, self._vocabulary, self._indexes, self._waits = plan, vocabulary, indexes, waits
        self._blocks: list[Block] = []  # the one used last is the last
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._next: tuple[int, int] | None = None  # where the newest block ends, and how large the one behind it is

    def of(self, pack: int) -> Block:
        """Return the block with a pack; raises ManifestError or StorageError where the plan itself cannot be read."""
        found = self._kept(pack)
        if found is None:
            with self._making:
                found = self._kept(pack) or self._make(pack)
        return found

    def kept(self) -> list[Block]:
        """Return what is in memory."""
        with self._lock:
            return list(self._blocks)

    def _kept(self, pack: int) -> Block | None:
        with self._lock:
            for place, block in enumerate(reversed(self._blocks), 1):
                if block.first_pack <= pack < block.end_pack:
                    if place > 1:
                        self._blocks.append(self._blocks.pop(-place))
                    return block
        return None

    def _make(self, pack: int) -> Block:
        follows = self._next is not None and self._next[0] == pack
        size = self._next[1] if self._next is not None and follows else _FIRST_DOCUMENTS
        window = self._plan.window_of(pack)
        first = pack - window.first_pack
        end = int(np.searchsorted(window.rows, window.rows[first] + size, "right")) - 1
        block = self._block(window, first, max(end, first + 1))
        self._next = block.end_pack, min(2 * size, _MOST_DOCUMENTS)
        with self._lock:
            self._blocks = [*self._blocks[1 - _BLOCKS_KEPT :], block]
        return block

    def _block(self, window: PlanWindow, first: int, end: int) -> Block:
        """Join packs [first, end) of a window, numbered there, with indexes and layouts."""
        rows = window.rows[first : end + 1] - window.rows[first]
        placed = window.documents.taken(int(window.rows[first]), int(window.rows[end]))
        self._check(window, rows, placed, first, end)
        joined = _Joined.of(placed)
        self._indexes.prepare(joined.shards)
        for place, shard in enumerate(joined.shards):
            self._waits(shard)
            try:
                joined.add(place, placed, self._indexes.of(shard))
            except (ManifestError, StorageError):
                continue  # its documents have no layout; the reference tells why when their turn comes
        layouts = self._layouts(placed, joined)
        parts = np.stack([layouts.kind, layouts.loss, layouts.length, layouts.start, layouts.rows, layouts.columns], 1)
        parts = parts.astype(np.int32)
        kernel.find_extents(joined.documents, joined.extents, layouts.offsets, parts)
        return Block(
            first_pack=window.first_pack + first,
            end_pack=window.first_pack + end,
            window=window,
            first_row=int(window.rows[first]),
            rows=rows,
            documents=joined.documents,
            extents=joined.extents,
            offsets=layouts.offsets,
            parts=parts,
            marker_ids=layouts.marker_ids,
            shards=joined.shards,
            ends=tuple(joined.ends),
            scratch_bytes=int(((joined.extents[:, 1::2] + 7) & ~7).sum(axis=1).max(initial=0)),
        )

    def _check(self, window: PlanWindow, rows: NDArray[np.int64], placed: DocumentRows, first: int, end: int) -> None:
        """The kernel writes where the tables say: refuse tables that contradict each other or the context."""
        sums = np.add.reduceat(placed.length.astype(np.int64), rows[:-1]) if len(placed) else np.zeros(0, np.int64)
        tokens = window.packs.tokens[first:end]
        good = len(placed) and (np.diff(rows) > 0).all() and (placed.length > 0).all()
        if not good or (sums != tokens).any() or (tokens > self._plan.context).any():
            where = f"packs {window.first_pack + first} to {window.first_pack + end - 1}"
            raise ManifestError(
                f"{self._plan.folder.path}: {where} are not as long as their own table says; "
                'run "tokenmill verify --deep" on it'
            )

    def _layouts(self, placed: DocumentRows, joined: _Joined) -> Layouts:
        """Lay the documents out, one template after the other; writes their LAYOUT."""
        scanned = scan_segments(joined.strings(placed))
        found = []
        behind = 0
        for place, template in enumerate(placed.templates):
            chosen = np.flatnonzero((placed.template == place) & joined.has_string)
            if not len(chosen):
                continue
            layouts = self._laid_out(scanned, chosen, template, placed.variant[chosen])
            joined.documents[chosen, kernel.LAYOUT] = behind + np.arange(len(chosen))
            behind += len(chosen)
            found.append(layouts)
        return _joined_layouts(found)

    def _laid_out(
        self, scanned: Scanned, chosen: NDArray[np.int64], template: str, variants: NDArray[np.int32]
    ) -> Layouts:
        return lay_out_scanned(scanned, chosen, template, variants, self._vocabulary)[0]


@dataclass(slots=True)
class _Joined:
    """Documents of a block while their shards' indexes are joined to them."""

    shards: tuple[str, ...]
    ends: list[int]
    documents: NDArray[np.int64]
    extents: NDArray[np.int64]
    has_string: NDArray[np.bool_]
    order: NDArray[np.int64]  # documents by shard, and within it as they came
    bounds: NDArray[np.int64]
    segments: list[Any]  # of the shards that were read: strings of their documents
    read: list[NDArray[np.int64]]  # and which documents these are

    @classmethod
    def of(cls, placed: DocumentRows) -> _Joined:
        distinct, files = np.unique(placed.shard, return_inverse=True)
        documents = np.zeros((len(placed), kernel.DOCUMENT_COLUMNS), np.int64)
        documents[:, kernel.FILE], documents[:, kernel.LAYOUT] = files, -1
        documents[:, kernel.START], documents[:, kernel.LENGTH] = placed.start, placed.length
        order = np.argsort(files, kind="stable")
        return cls(
            shards=tuple(placed.shards[place] for place in distinct),
            ends=[0] * len(distinct),
            documents=documents,
            extents=np.zeros((len(placed), 2 * kernel.EXTENTS), np.int64),
            has_string=np.zeros(len(placed), np.bool_),
            order=order,
            bounds=np.searchsorted(files[order], np.arange(len(distinct) + 1)),
            segments=[],
            read=[],
        )

    def add(self, place: int, placed: DocumentRows, index: ShardIndex) -> None:
        """Take what a shard's index says of its documents; rows that it does not have are left without."""
        own = self.order[self.bounds[place] : self.bounds[place + 1]]
        samples = placed.sample[own]
        is_there = (samples >= 0) & (samples < len(index.members))
        own, samples = own[is_there], samples[is_there]
        members = index.members[samples]
        for column, (at, length, count) in ((kernel.CODES, members[:, :3].T), (kernel.TEXT_IDS, members[:, 3:].T)):
            self.documents[own, column + kernel.AT] = at
            self.documents[own, column + kernel.COUNT] = count
            self.documents[own, column + kernel.WIDTH] = _widths(length, count)
        self.ends[place] = index.end
        self.segments.append(index.segments.take(samples))
        self.read.append(own)

    def strings(self, placed: DocumentRows) -> pa.Array:
        """Give each document's segments as a string, "" where they are not known; fills `has_string`."""
        import pyarrow as pa

        strings = pa.array([], pa.large_string())
        if self.read:
            strings = pa.concat_arrays([part.dictionary_decode().cast(pa.large_string()) for part in self.segments])
        read = np.concatenate([np.empty(0, np.int64), *self.read])
        self.has_string[read] = strings.is_valid().to_numpy(zero_copy_only=False)
        places = np.full(len(placed), -1, np.int64)
        places[read] = np.arange(len(read))
        strings = strings.take(pa.array(places, mask=places < 0)).fill_null("")
        runs = np.flatnonzero((placed.frames > 0) & self.has_string)
        if len(runs):
            told = strings.to_pylist()
            for row in runs.tolist():
                told[row] = _taken(told[row], int(placed.frame[row]), int(placed.frames[row]))
            strings = pa.array(told, pa.large_string())
        return strings


def _widths(length: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell the bytes of an item from the lengths of arrays; 0 where the array is not as numpy writes it."""
    wide = length - kernel.HEADER_BYTES
    return np.where(count < 1, 0, np.where(wide == 2 * count, 2, np.where(wide == 4 * count, 4, 0)))


@lru_cache(maxsize=65_536)
def _taken(segments: str, frame: int, frames: int) -> str:
    """Give the segments of a run of frames, "" where there is no such run."""
    try:
        taken = take_frames(segments_from_json(json.loads(segments)), frame, frames)
    except (SampleError, ManifestError, ValueError):
        return ""
    return json.dumps(segments_to_json(taken))


def _joined_layouts(layouts: list[Layouts]) -> Layouts:
    """Put layouts behind one another."""
    offsets, markers = [np.zeros(1, np.int64)], 0
    starts = []
    for one in layouts:
        offsets.append(one.offsets[1:] + offsets[-1][-1])
        starts.append(np.where(one.kind == 0, one.start + markers, one.start))
        markers += len(one.marker_ids)
    return Layouts(
        offsets=np.concatenate(offsets),
        kind=np.concatenate([np.empty(0, np.uint8), *(one.kind for one in layouts)]),
        loss=np.concatenate([np.empty(0, np.uint8), *(one.loss for one in layouts)]),
        start=np.concatenate([np.empty(0, np.int32), *starts]),
        marker_ids=np.concatenate([np.empty(0, np.int32), *(one.marker_ids for one in layouts)]),
        **{
            name: np.concatenate([np.empty(0, np.int32), *(getattr(one, name) for one in layouts)])
            for name in ("length", "rows", "columns")
        },
    )
