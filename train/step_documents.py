"""What the plan says of the documents of a step: by which template each was made, and what each template weighs.

The arrays of a step don't tell; the windows' tables do, which are in memory while their packs are trained on. Columns
are taken, no object is made for a document: 40 µs for a step of 16 packs.

D documents of a micro-batch with its paddings, T templates, M micro-steps, m packs of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.plan_rows import PlanWindow
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.templates import TEMPLATES
from tokenmill.train import assembly_tables as tables
from tokenmill.train.pack_slots import Slots

TEMPLATE_NAMES = tuple(TEMPLATES)
PADDING = -1

_Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDocuments:
    """Of one rank's part of a step, and of the whole.

    Attributes:
        templates: of each micro-batch int64 (D,), a place in TEMPLATE_NAMES for each of its documents, PADDING for what
            fills a pack up.
        packs: int64 (M, m), the packs of each micro-batch, -1 for fillers.
        weight: float64 (T,), what the documents of each template weigh in the whole step, on all ranks.
    """

    templates: list[_Numbers]
    packs: _Numbers
    weight: NDArray[np.float64]


def step_documents(plan: Plan, slots: Slots, packs: range) -> StepDocuments:
    """Look up the documents of a rank's slots, and what all `packs` of the step weigh."""
    codes = np.full(slots.borders[-1], PADDING, np.int64)
    mine = slots.packs
    weight = np.zeros(len(TEMPLATE_NAMES))
    first = packs.start
    while first < packs.stop:
        window = plan.window_of(first)
        end = min(packs.stop, window.end_pack)
        weight += _weights(window, first, end)
        here = slots.table[(mine >= first) & (mine < end)]
        local = here[:, tables.PACK] - window.first_pack
        counts = window.packs.documents[local]
        rows = _stretches(window.rows[local], counts)
        codes[_stretches(here[:, tables.BORDER], counts)] = _names(window)[window.documents.template[rows]]
        first = end
    return StepDocuments(
        templates=[codes[begin + 1 : stop] for begin, stop in pairwise(slots.borders)],
        packs=mine.reshape(len(slots.borders) - 1, -1),
        weight=weight,
    )


def _weights(window: PlanWindow, first: int, end: int) -> NDArray[np.float64]:
    """Sum what documents weigh, by template, over packs [first, end) of the plan."""
    rows = slice(window.rows[first - window.first_pack], window.rows[end - window.first_pack])
    templates = _names(window)[window.documents.template[rows]]
    weights: NDArray[np.float64] = np.bincount(templates, window.documents.weight[rows], len(TEMPLATE_NAMES))  # type: ignore[assignment]
    return weights


def _names(window: PlanWindow) -> _Numbers:
    """Map a window's template numbers to ours."""
    return np.array([TEMPLATE_NAMES.index(name) for name in window.documents.templates], np.int64)


def _stretches(starts: _Numbers, counts: _Numbers) -> _Numbers:
    """Join start, start + 1 … of as many as counts say."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
