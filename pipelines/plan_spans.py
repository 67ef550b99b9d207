"""Documents of a plan as lengths and loss classes alone: no id is read to weigh or to cut one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenmill.tokenize.templates import LossClass

CUTTABLE = ("language",)  # templates whose documents are nothing but text

Spans = Sequence[tuple[int, LossClass]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a window under one template.

    Attributes:
        sample: row of its shard's index.
        spans: length and loss class of its parts in order.
        frame, frames: first latent frame and number of them, where it is a stretch of a clip; else 0.
        start: ids of the whole document before it, where it is a part of a page.
        split: ids of the first of two documents that stand next to each other in one pack (a pair); else 0.
    """

    sample: int
    template: str
    variant: int
    spans: Spans
    frame: int = 0
    frames: int = 0
    start: int = 0
    split: int = 0

    @property
    def length(self) -> int:
        return sum(length for length, _ in self.spans)

    @property
    def cuttable(self) -> bool:
        return self.template in CUTTABLE


def piece_weights(spans: Spans, start: int, length: int) -> dict[LossClass, int]:
    """Count the ids of each loss class in a piece; its first id has no context and is counted under `none`."""
    counts: dict[LossClass, int] = {"text": 0, "vision": 0, "none": 0}
    ends = accumulate(span for span, _ in spans)
    for (span, loss), end in zip(spans, ends, strict=True):
        overlap = min(end, start + length) - max(end - span, start)
        if overlap <= 0:
            continue
        first = 1 if end - span <= start < end else 0
        counts[loss] += overlap - first
        counts["none"] += first
    return counts


def spans_between(spans: Spans, start: int, end: int) -> Spans:
    """Cut out the ids [start, end)."""
    behind = accumulate(length for length, _ in spans)
    cut = ((min(to, end) - max(to - length, start), loss) for (length, loss), to in zip(spans, behind, strict=True))
    return [(length, loss) for length, loss in cut if length > 0]
