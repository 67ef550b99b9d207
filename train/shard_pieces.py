"""Bytes of the documents of some packs: open files for the kernel to read, or stretches fetched from elsewhere.

What lies on a local disk costs nothing here but a look-up. Of remote shards, all stretches that a step needs are asked
for at once, and lie in one buffer behind one another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import OutageError, StorageError
from tokenmill.train import assembly_tables as tables
from tokenmill.train.assembly_places import documents_of, mark_files
from tokenmill.train.pack_blocks import Block
from tokenmill.train.shard_bytes import FILES_KEPT, ShardBytes, ShardFile

log = logging.getLogger(__name__)

_NOTHING = np.empty(0, np.uint8)
_NOWHERE = np.empty(0, np.int64)
_HELD_S = 1.0


@dataclass(frozen=True, slots=True)
class Pieces:
    """Bytes of D documents.

    Attributes:
        files: held open as long as somebody reads from them.
        descriptors: int64, of each shard of the block; -1 where there is none.
        addresses: int64, where each mapped shard lies in memory; 0 where it does not.
        wholes: int64 (shards, 8), a mapped shard as one stretch, as in a block's extents.
        fetched: uint8, stretches of documents in remote shards.
        fetched_at: int64 (D,), where a document's stretches begin there; -1 where they are not.
    """

    files: Sequence[ShardFile]
    descriptors: NDArray[np.int64]
    addresses: NDArray[np.int64]
    wholes: NDArray[np.int64]
    fetched: NDArray[np.uint8]
    fetched_at: NDArray[np.int64]


@dataclass(slots=True)
class _HeldFiles:
    """Open files of a block that need not be asked for until a time; arrays as in `Pieces`."""

    block: Block
    until_s: float
    descriptors: NDArray[np.int64]
    addresses: NDArray[np.int64]
    wholes: NDArray[np.int64]
    files: list[ShardFile]
    told: str  # what is said to be waited for
    is_whole: bool = False  # every shard of the block is open

    @classmethod
    def none_of(cls, block: Block, until_s: float) -> _HeldFiles:
        shards = len(block.shards)
        wholes = np.zeros((shards, 2 * tables.EXTENTS), np.int64)
        return cls(block, until_s, np.full(shards, -1, np.int64), np.zeros(shards, np.int64), wholes, [],
                   _some_of(block.shards))  # fmt: skip

    def take(self, place: int, file: ShardFile) -> None:
        """Hold a shard's file; one that is shorter now than when it was mapped, or than planned, is not read there."""
        self.files.append(file)
        self.descriptors[place] = file.fileno()
        if file.address and file.size >= max(file.mapped, self.block.ends[place]):
            self.addresses[place], self.wholes[place, 1] = file.address, file.mapped

    def pieces(self, fetched: NDArray[np.uint8], fetched_at: NDArray[np.int64]) -> Pieces:
        return Pieces(self.files, self.descriptors, self.addresses, self.wholes, fetched, fetched_at)


class PieceReader:
    """Gets bytes from a source; `waits(shard)` is told what is being waited for."""

    def __init__(self, source: ShardBytes, waits: Callable[[str], None]) -> None:
        self._source, self._waits = source, waits
        self._warned: set[str] = set()
        self._held: _HeldFiles | None = None

    def pieces(self, block: Block, low: int, slots: NDArray[np.int64], documents: int) -> Pieces:
        """Get what the packs of `slots` from `low` on need, of one block; `documents` are in the whole step.

        What cannot be had is left out: the kernel then fails those documents, and the reference says why.
        """
        held = self._held_of(block)
        if held.is_whole:
            self._waits(held.told)
            return held.pieces(_NOTHING, _NOWHERE)
        is_used = np.zeros(len(block.shards), np.bool_)
        mark_files(slots, block.rows, block.first_pack, low, block.documents, is_used)
        wanted: dict[int, list[_Stretch]] = {}
        for place in np.flatnonzero(is_used & (held.descriptors < 0)).tolist():
            file = self._file(block, place)
            if isinstance(file, ShardFile):
                held.take(place, file)
            elif file is None:
                wanted[place] = []
        held.is_whole = bool((held.descriptors >= 0).all())
        fetched, fetched_at = _NOTHING, np.full(documents, -1, np.int64)
        if wanted:
            size = _list_stretches(block, low, slots, wanted)
            fetched = np.empty(size, np.uint8)
            self._fetch(block, wanted, fetched, fetched_at)
        return held.pieces(fetched, fetched_at)

    def _held_of(self, block: Block) -> _HeldFiles:
        """Return the files of a block that are at hand; now and then none, so that the source hears what is in use."""
        held, now_s = self._held, time.monotonic()
        if held is None or held.block is not block or now_s > held.until_s or len(held.files) >= FILES_KEPT:
            self._held = held = _HeldFiles.none_of(block, now_s + _HELD_S)
        return held

    def _file(self, block: Block, place: int) -> ShardFile | StorageError | None:
        shard = block.shards[place]
        self._waits(shard)
        try:
            file = self._source.file(shard)
        except OutageError:
            raise
        except StorageError as error:
            return error
        if file is not None and file.size < block.ends[place] and shard not in self._warned:
            self._warned.add(shard)
            told = "it was cut off or replaced, what is missing gets weight 0"
            log.warning("%s has %d bytes, its index goes to %d: %s", shard, file.size, block.ends[place], told)
        return file

    def _fetch(
        self,
        block: Block,
        wanted: Mapping[int, Sequence[_Stretch]],
        fetched: NDArray[np.uint8],
        fetched_at: NDArray[np.int64],
    ) -> None:
        """Fill the buffer, and write where each document's stretches begin."""
        self._waits(_some_of([block.shards[place] for place in wanted]))
        ranges = {block.shards[place]: [(one.start, one.length) for one in asked] for place, asked in wanted.items()}
        found = self._source.fetch(ranges)
        missing = set()
        for place, stretches in wanted.items():
            for one, piece in zip(stretches, found[block.shards[place]], strict=True):
                if isinstance(piece, OutageError):
                    raise piece
                if isinstance(piece, Exception):
                    missing.add(one.document)
                    continue
                fetched[one.place : one.place + one.length] = np.frombuffer(piece, np.uint8)
                if one.is_first:
                    fetched_at[one.document] = one.place
        fetched_at[list(missing)] = -1


def _some_of(shards: Sequence[str]) -> str:
    return ", ".join(shards[:3]) + (" and others" if len(shards) > 3 else "")


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Bytes [start, start + length) of a shard, for a document of the step, at a place in the buffer."""

    start: int
    length: int
    document: int
    place: int
    is_first: bool


def _list_stretches(block: Block, low: int, slots: NDArray[np.int64], wanted: Mapping[int, list[_Stretch]]) -> int:
    """List what to fetch of each wanted shard; returns the size of the buffer."""
    size = 0
    for slot in slots:
        first, end, _ = documents_of(slot, block.rows, block.first_pack, low)
        error = int(slot[tables.ERROR])
        files, layouts = block.documents[first:end, [tables.FILE, tables.LAYOUT]].T.tolist()
        for number, (place, layout) in enumerate(zip(files, layouts, strict=True)):
            if place not in wanted or layout < 0:
                continue
            is_first = True
            for start, length in block.extents[first + number].reshape(-1, 2).tolist():
                if length:
                    wanted[place].append(_Stretch(start, length, error + number, size, is_first))
                    size, is_first = size + ((length + 7) & ~7), False
    return size
