"""Where the packs of one rank's part of a step go: one set of arrays for all micro-batches, each pack in its place.

Labels and weights are allocated one place longer and handed out without the first (see assembly_kernel.py).

S packs, D documents, L ids of all packs, M micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.plan_rows import PackRows
from tokenmill.tokenize.documents import Assembled
from tokenmill.train import assembly_kernel as kernel
from tokenmill.train.packs import FILLER_LENGTH, NO_LABEL, PackArrays
from tokenmill.train.step_buffers import StepBuffers

Hands = Sequence[Sequence[int | None]]  # for each micro-step, packs of the step by number; None is a filler


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The arrays of all micro-batches behind one another; labels and weights begin one place before the ids."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    positions: NDArray[np.int64]
    borders: NDArray[np.int32]
    errors: NDArray[np.uint8]

    @classmethod
    def on(cls, buffers: StepBuffers, length: int, borders: int, documents: int) -> StepArrays:
        sizes = [8 * length, 8 * (length + 1), 4 * (length + 1), 8 * length]
        ends = list(accumulate((size + 63) & ~63 for size in sizes))
        memory = buffers.lend(ends[-1])
        starts = [0, *ends[:-1]]
        ids, labels, weights, positions = (memory[at : at + size] for at, size in zip(starts, sizes, strict=True))
        return cls(
            ids.view(np.int64),
            labels.view(np.int64),
            weights.view(np.float32),
            positions.view(np.int64),
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
    """Where the packs go: `table` int64 (S, 7) as the kernel has it; `packs` (S,), -1 for fillers."""

    packs: NDArray[np.int64]
    table: NDArray[np.int64]
    places: list[int]  # where each micro-batch begins, and behind the last
    borders: list[int]  # the same in the borders
    sums: NDArray[np.int64]  # (M, 2): tokens and squares of each micro-batch
    documents: int

    @classmethod
    def of(cls, first_pack: int, costs: PackRows, hands: Hands, context: int) -> Slots:
        packs = np.array([-1 if pack is None else pack for hand in hands for pack in hand], np.int64)
        ends = np.array(list(accumulate(len(hand) for hand in hands)), np.int64)
        table = np.empty((len(packs), kernel.SLOT_COLUMNS), np.int64)
        bounds, sums = np.empty((len(hands) + 1, 2), np.int64), np.empty((len(hands), 2), np.int64)
        documents = kernel.place_packs(
            packs, ends, costs.documents, costs.tokens, costs.squares, context, FILLER_LENGTH, table, bounds, sums
        )
        packs[packs >= 0] += first_pack
        places, borders = bounds.T.tolist()
        return cls(packs, table, places, borders, sums, documents)

    @property
    def length(self) -> int:
        return self.places[-1]

    def cut(self, arrays: StepArrays) -> list[PackArrays]:
        """Give each micro-batch its part of the arrays, without a copy."""
        found = []
        for number, (tokens, squares) in enumerate(self.sums.tolist()):
            start, end = self.places[number], self.places[number + 1]
            found.append(
                PackArrays(
                    input_ids=arrays.ids[start:end],
                    labels=arrays.labels[start + 1 : end + 1],
                    loss_weight=arrays.weights[start + 1 : end + 1],
                    position_ids=arrays.positions[start:end],
                    cu_seqlens=arrays.borders[self.borders[number] : self.borders[number + 1]],
                    num_tokens=tokens,
                    squares=squares,
                )
            )
        return found
