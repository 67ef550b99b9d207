"""Stretches of a plan made ready for the compiled assembly: documents joined with their shards' indexes, laid out.

A window has up to 10^5 documents; joining all before the first step would make a resume wait. So the first block after
a seek has 512 documents and each that follows directly twice as many, up to 16,384. Four blocks are kept.

N documents, P packs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, OutageError, StorageError
from tokenmill.manifests.plan_rows import DocumentRows, PlanWindow
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.layouts import Layouts, Scanned, lay_out_scanned
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train import assembly_tables as tables
from tokenmill.train.assembly_places import find_extents
from tokenmill.train.joined_documents import JoinedDocuments
from tokenmill.train.shard_index import ShardIndexes

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
        self._next = -1, 0, _FIRST_DOCUMENTS  # where the newest block ends, its packs, and documents of the next

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
        end, packs, size = self._next
        if not end <= pack <= end + 4 * packs:  # one of many ranks has gaps between its packs
            size = _FIRST_DOCUMENTS
        window = self._plan.window_of(pack)
        first = pack - window.first_pack
        end = int(np.searchsorted(window.rows, window.rows[first] + size, "right")) - 1
        block = self._block(window, first, max(end, first + 1))
        self._next = block.end_pack, block.end_pack - pack, min(2 * size, _MOST_DOCUMENTS)
        with self._lock:
            self._blocks = [*self._blocks[1 - _BLOCKS_KEPT :], block]
        return block

    def _block(self, window: PlanWindow, first: int, end: int) -> Block:
        """Join packs [first, end) of a window, numbered there, with indexes and layouts."""
        rows = window.rows[first : end + 1] - window.rows[first]
        placed = window.documents.taken(int(window.rows[first]), int(window.rows[end]))
        self._check(window, rows, placed, first, end)
        joined = JoinedDocuments.of(placed)
        self._indexes.prepare(joined.shards)
        for place, shard in enumerate(joined.shards):
            self._waits(shard)
            try:
                joined.add(place, placed, self._indexes.of(shard))
            except OutageError:
                raise
            except (ManifestError, StorageError):
                continue  # its documents have no layout; the reference tells why when their turn comes
        layouts = self._layouts(placed, joined)
        parts = np.stack([layouts.kind, layouts.loss, layouts.length, layouts.start, layouts.rows, layouts.columns], 1)
        parts = parts.astype(np.int32)
        find_extents(joined.documents, joined.extents, layouts.offsets, parts)
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

    def _layouts(self, placed: DocumentRows, joined: JoinedDocuments) -> Layouts:
        """Lay the documents out, one template after the other; writes their LAYOUT."""
        scanned, strings = joined.scanned(placed)
        found = []
        behind = 0
        for place, template in enumerate(placed.templates):
            chosen = np.flatnonzero((placed.template == place) & joined.has_string)
            if not len(chosen):
                continue
            layouts = self._laid_out(scanned, strings[chosen], template, placed.variant[chosen])
            joined.documents[chosen, tables.LAYOUT] = behind + np.arange(len(chosen))
            behind += len(chosen)
            found.append(layouts)
        return _joined_layouts(found)

    def _laid_out(
        self, scanned: Scanned, strings: NDArray[np.int64], template: str, variants: NDArray[np.int32]
    ) -> Layouts:
        return lay_out_scanned(scanned, strings, template, variants, self._vocabulary)[0]


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
