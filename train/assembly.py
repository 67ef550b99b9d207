"""One rank's packs of a step as arrays: read and laid out by the compiled kernel, in one call a block of the plan.

What the kernel cannot read or does not know goes to the reference (samples.py, tokenize/documents.py), one document at
a time: it says why, or reads what the kernel is too strict for. A sample that cannot be read keeps its place as padding
of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tokenmill.errors import ManifestError, OutageError, SampleError, StorageError
from tokenmill.manifests.plan_rows import Placed
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.documents import Assembled, assemble
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train import assembly_tables as tables
from tokenmill.train.assembly_kernel import assemble_packs
from tokenmill.train.fault_budget import FaultBudget
from tokenmill.train.pack_blocks import Block, PackBlocks
from tokenmill.train.pack_slots import Slots, StepArrays
from tokenmill.train.packs import PackArrays
from tokenmill.train.samples import SampleReader
from tokenmill.train.shard_bytes import ShardBytes
from tokenmill.train.shard_index import ShardIndexes
from tokenmill.train.shard_pieces import PieceReader
from tokenmill.train.step_buffers import StepBuffers
from tokenmill.train.steps import ReadSample

_UNREADABLE = (SampleError, StorageError, ManifestError, ValueError)
_Chosen = tuple[Block, int]  # a block, and the pack from which on it is used


class Assembler:
    """Makes micro-batches of packs of one plan; safe to use from several threads."""

    def __init__(
        self, plan: Plan, vocabulary: Vocabulary, source: ShardBytes, waits: Callable[[str], None], buffers: int
    ) -> None:
        self._plan, self._vocabulary = plan, vocabulary
        self._samples = SampleReader(plan.folder.store, plan.index_of)
        self._indexes = ShardIndexes(plan.folder.store, plan.index_of)
        self._blocks = PackBlocks(plan, vocabulary, self._indexes, waits)
        self._pieces = PieceReader(source, waits)
        self._faults = FaultBudget()
        self._buffers = StepBuffers(buffers)
        self._names = np.array([vocabulary.pad, vocabulary.eol, vocabulary.eof, 0, vocabulary.vision_base,
                                vocabulary.text.size, vocabulary.codebook_size], np.int64)  # fmt: skip
        self._text_weight: float = plan.description["text_weight"]
        self._vision_weight: float = plan.description["vision_weight"]
        self._class_weights = np.array([0.0, self._text_weight, self._vision_weight], np.float32)

    def micro_batches(self, slots: Slots) -> tuple[list[PackArrays], list[ReadSample]]:
        """Assemble packs of one step; returns also what could not be read.

        Raises ManifestError or StorageError where the plan cannot be read, RunError after too many faults in a row.
        """
        arrays = StepArrays.on(self._buffers, slots.length, slots.borders[-1], slots.documents)
        chosen = list(self._blocks_of(slots))
        failed = sum([self._fill(block, low, slots, arrays) for block, low in chosen])
        faults = self._read_again(chosen, slots, arrays) if failed else []
        if slots.documents and not failed:
            self._faults.clear()
        return slots.cut(arrays), faults

    def samples(self, slots: Slots, faults: Sequence[ReadSample]) -> list[ReadSample]:
        """Tell every document of the packs; reads their keys from the indexes."""
        known = {(fault.pack, fault.slot): fault for fault in faults}
        told = []
        for pack in slots.packs[slots.packs >= 0].tolist():
            for slot, placed in enumerate(self._plan.documents(pack)):
                fault = known.get((pack, slot))
                told.append(fault or _told(pack, slot, placed, self._samples.key(placed.shard, placed.sample), None))
        return told

    def _blocks_of(self, slots: Slots) -> Iterator[_Chosen]:
        """Yield the blocks of the packs, and the pack from which on each is used: blocks may overlap."""
        low = slots.first
        while True:
            block = self._blocks.of(low)
            yield block, low
            if slots.last < block.end_pack:
                return
            low = int(slots.packs[slots.packs >= block.end_pack].min())

    def _fill(self, block: Block, low: int, slots: Slots, arrays: StepArrays) -> int:
        """Let the kernel write the packs of one block; returns how many documents failed."""
        pieces = self._pieces.pieces(block, low, slots.table, slots.documents)
        return int(
            assemble_packs(
                slots.table, block.rows, block.first_pack, low,
                block.documents, block.extents, block.offsets, block.parts, block.marker_ids,
                pieces.descriptors, pieces.addresses, pieces.wholes, pieces.fetched, pieces.fetched_at,
                np.empty(block.scratch_bytes, np.uint8), self._names, self._class_weights,
                arrays.ids, arrays.labels, arrays.weights, arrays.positions, arrays.borders,
                arrays.errors,
            )
        )  # fmt: skip

    def _read_again(self, chosen: Sequence[_Chosen], slots: Slots, arrays: StepArrays) -> list[ReadSample]:
        """Give the documents that the kernel could not write to the reference; returns those that it cannot read."""
        faults = []
        for block, low in chosen:
            for slot in slots.table:
                pack, place = int(slot[tables.PACK]), int(slot[tables.PLACE])
                if not low <= pack < block.end_pack:
                    continue
                first, end = block.rows[pack - block.first_pack :][:2].tolist()
                errors = arrays.errors[slot[tables.ERROR] :][: end - first].tolist()
                for number, error in enumerate(errors):
                    placed = block.window.documents.placed(block.first_row + first + number)
                    fault = self._again(placed, place, arrays) if error else None
                    if fault is None:
                        self._faults.clear()
                    else:
                        self._faults.add(placed, fault)
                        faults.append(_told(pack, number, placed, "", str(fault)))
                    place += placed.length
        return faults

    def _again(self, placed: Placed, place: int, arrays: StepArrays) -> Exception | None:
        """Write a document by the reference at its place in the arrays, or return why it cannot be read."""
        try:
            document = self._reference(placed)
        except OutageError:
            raise  # steps without data must not be trained on: the run ends and is resumed
        except _UNREADABLE as error:
            return error
        arrays.write(place, document)
        return None

    def _reference(self, placed: Placed) -> Assembled:
        sample = self._samples.read(placed.shard, placed.sample)
        segments = take_frames(sample.segments, placed.frame, placed.frames) if placed.frames else sample.segments
        return assemble(
            segments,
            sample.text_ids,
            sample.codes,
            placed.template,
            self._vocabulary,
            placed.variant,
            self._vision_weight,
            self._text_weight,
        ).piece(placed.start, placed.length)


def _told(pack: int, slot: int, placed: Placed, key: str, fault: str | None) -> ReadSample:
    return ReadSample(pack=pack, slot=slot, key=key, shard=placed.shard, sample=placed.sample, start=placed.start,
                      length=placed.length, template=placed.template, fault=fault)  # fmt: skip
