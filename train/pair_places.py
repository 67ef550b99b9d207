"""Where the preference pairs of a micro-batch stand, and what a step's losses are divided by: read off the plan.

The loader knows nothing of pairs: their halves are two rows of the plan next to each other, laid side by side as any
other documents are. Columns of the windows' tables say which, so no rank needs to ask another.

P pairs, L ids of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.plan_rows import PlanWindow
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.train.packs import FILLER_LENGTH

_Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlaces:
    """The P pairs of a micro-batch.

    Attributes:
        packs, slots: int64 (P,), where the chosen halves stand in the plan; the rejected ones are a slot further.
        begins, ends: int64 (P, 2), the ids of the chosen and of the rejected document in the micro-batch.
    """

    packs: _Numbers
    slots: _Numbers
    begins: _Numbers
    ends: _Numbers

    def __len__(self) -> int:
        return len(self.packs)

    def halves(self, length: int) -> _Numbers:
        """Say of each of so many ids which half it belongs to, 2·p or 2·p + 1; 2·P for what belongs to none."""
        found = np.full(length, 2 * len(self), np.int64)
        for half, (begin, end) in enumerate(zip(self.begins.ravel().tolist(), self.ends.ravel().tolist(), strict=True)):
            found[begin:end] = half
        return found


@dataclass(frozen=True, slots=True)
class StepShares:
    """What a whole step has, on all ranks: its pairs, and the weight of what is learned by next-token loss."""

    pairs: int
    next_token_weight: float
    rejected_weight: float


def pair_places(plan: Plan, packs: Sequence[int]) -> PairPlaces:
    """Find the pairs of a micro-batch that holds these packs in this order, -1 for fillers."""
    found: list[tuple[_Numbers, ...]] = []
    position = 0
    for pack in packs:
        if pack < 0:
            position += FILLER_LENGTH
            continue
        window = plan.window_of(pack)
        rows = slice(*window.rows[pack - window.first_pack :][:2].tolist())
        ends = position + np.cumsum(window.documents.length[rows], dtype=np.int64)
        (slots,) = np.nonzero(_is_chosen(window, rows))
        bounds = np.stack([ends[slots], ends[slots + 1]], axis=1)
        lengths = window.documents.length[rows].astype(np.int64)
        found.append(
            (np.full(len(slots), pack), slots, bounds - np.stack([lengths[slots], lengths[slots + 1]], 1), bounds)
        )
        position += plan.context
    none = (np.empty(0, np.int64),) * 2 + (np.empty((0, 2), np.int64),) * 2
    columns = [np.concatenate(column) for column in zip(none, *found, strict=True)]
    return PairPlaces(packs=columns[0], slots=columns[1], begins=columns[2], ends=columns[3])


def step_shares(plan: Plan, packs: range) -> StepShares:
    """Count what the packs of a step have together."""
    pairs, learned, rejected = 0, 0.0, 0.0
    for window, rows in _windows(plan, packs):
        is_chosen = _is_chosen(window, rows)
        is_rejected = np.concatenate([[False], is_chosen[:-1]])
        weight = window.documents.weight[rows].astype(np.float64)
        pairs += int(is_chosen.sum())
        learned += float(weight[~is_rejected].sum())
        rejected += float(weight[is_rejected].sum())
    return StepShares(pairs, learned, rejected)


def _windows(plan: Plan, packs: range) -> Iterator[tuple[PlanWindow, slice]]:
    """Yield the windows of a run of packs, each with the rows of its documents that belong to them."""
    first = packs.start
    while first < packs.stop:
        window = plan.window_of(first)
        end = min(packs.stop, window.end_pack)
        yield window, slice(int(window.rows[first - window.first_pack]), int(window.rows[end - window.first_pack]))
        first = end


def _is_chosen(window: PlanWindow, rows: slice) -> NDArray[np.bool_]:
    """Say which documents are the first halves of pairs."""
    if PREFERENCE not in window.documents.templates:
        return np.zeros(rows.stop - rows.start, np.bool_)
    place = window.documents.templates.index(PREFERENCE)
    is_chosen: NDArray[np.bool_] = (window.documents.template[rows] == place) & (window.documents.start[rows] == 0)
    return is_chosen
