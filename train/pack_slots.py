"""Where the packs of one rank's part of a step go: one set of arrays for all micro-batches, each pack in its place.

Labels and weights are allocated one place longer and handed out without the first (see assembly_kernel.py).

S packs, D documents, L ids of all packs, M micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.plan_rows import PackRows
from tokenmill.tokenize.documents import Assembled
from tokenmill.train import assembly_tables as tables
from tokenmill.train.assembly_places import place_packs
from tokenmill.train.packs import FILLER_LENGTH, NO_LABEL, PackArrays
from tokenmill.train.step_buffers import StepBuffers


class StepArrays(NamedTuple):
    """The arrays of all micro-batches behind one another; labels and weights begin one place before the ids."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    positions: NDArray[np.int64]
    borders: NDArray[np.int32]
    errors: NDArray[np.uint8]

    @classmethod
    def on(cls, buffers: StepBuffers, length: int, borders: int, documents: int) -> StepArrays:
        at_labels = _lines(8 * length)
        at_positions = at_labels + _lines(8 * (length + 1))
        at_weights = at_positions + _lines(8 * length)
        memory = buffers.lend(at_weights + _lines(4 * (length + 1)))
        return cls(
            np.ndarray(length, np.int64, memory, 0),
            np.ndarray(length + 1, np.int64, memory, at_labels),
            np.ndarray(length + 1, np.float32, memory, at_weights),
            np.ndarray(length, np.int64, memory, at_positions),
            np.zeros(borders, np.int32),
            np.zeros(documents, np.uint8),
        )

    def write(self, place: int, document: Assembled) -> None:
        """Put a document of the reference where it belongs."""
        end = place + len(document.ids)
        self.ids[place:end] = document.ids
        self.weights[place + 1 : end] = document.weights[1:]
        self.labels[place + 1 : end] = np.where(document.weights[1:] == 0.0, NO_LABEL, document.ids[1:])


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the packs of a step go: `table` int64 (S, 6) as the kernel has it."""

    table: NDArray[np.int64]
    first: int  # the lowest pack of the table; the first of the step if there are only fillers
    last: int
    places: list[int]  # where each micro-batch begins, and behind the last
    borders: list[int]  # the same in the borders
    sums: list[list[int]]  # tokens and squares of each micro-batch
    documents: int

    @classmethod
    def of_steps(
        cls, first_pack: int, starts: NDArray[np.int64], costs: PackRows, hands: NDArray[np.int64], context: int
    ) -> list[Slots]:
        """Place the packs of steps; `hands` (steps, micro-steps, packs) and starts (steps,) number those of `costs`.

        -1 is a filler. The first pack of `costs` is first_pack in the plan.
        """
        steps, micro_steps, micro_packs = hands.shape
        table = np.empty((steps, micro_steps * micro_packs, tables.SLOT_COLUMNS), np.int64)
        bounds = np.empty((steps, micro_steps + 1, 2), np.int64)
        sums, documents = np.empty((steps, micro_steps, 2), np.int64), np.empty(steps, np.int64)
        place_packs(hands, costs.documents, costs.tokens, costs.squares, first_pack, context, FILLER_LENGTH, table,
                    bounds, sums, documents)  # fmt: skip
        packs = table[:, :, tables.PACK]
        lowest = np.where(packs < 0, np.iinfo(np.int64).max, packs).min(axis=1)
        firsts = np.where(packs.max(axis=1) < 0, first_pack + starts, lowest)
        columns = (firsts, packs.max(axis=1), bounds[:, :, 0], bounds[:, :, 1], sums, documents)
        return [cls(*row) for row in zip(table, *(column.tolist() for column in columns), strict=True)]

    @property
    def packs(self) -> NDArray[np.int64]:
        """The pack of each slot, -1 for fillers."""
        return self.table[:, tables.PACK]

    @property
    def length(self) -> int:
        return self.places[-1]

    def cut(self, arrays: StepArrays) -> list[PackArrays]:
        """Give each micro-batch its part of the arrays, without a copy."""
        ids, positions, borders = arrays.ids, arrays.positions, arrays.borders
        labels, weights = arrays.labels[1:], arrays.weights[1:]
        return [
            PackArrays(ids[start:end], labels[start:end], weights[start:end], positions[start:end],
                       borders[first:last], tokens, squares)
            for (start, end), (first, last), (tokens, squares) in zip(
                pairwise(self.places), pairwise(self.borders), self.sums, strict=True
            )
        ]  # fmt: skip


def _lines(size: int) -> int:
    """Round bytes up to whole lines of a cache."""
    return (size + 63) & ~63
