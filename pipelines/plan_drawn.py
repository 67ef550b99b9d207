"""The documents drawn from indexes, as arrays, and the samples that gave none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_spans import CUTTABLE, Document
from tokenmill.pipelines.plan_templates import TEMPLATE_NAMES
from tokenmill.tokenize.layouts import LOSSES

_UNREMARKABLE = (
    "held_out",
    "training",
    "not_drawn",
    "seen",
)  # what the recipe asked for: counted, but not listed by sample
_FAILED = "bad_segments"  # not the plan's decision but damage
_CUTTABLE = np.array([name in CUTTABLE for name in TEMPLATE_NAMES])
_LOSS_NAMES = {number: name for name, number in LOSSES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """D documents, in the order of their samples; the fields are those of `Document`.

    Attributes:
        shard: int32 (D,), the number of the pass in its window.
        sample, variant, frame, frames, start: int32 (D,).
        template: uint8 (D,), a place in TEMPLATE_NAMES.
        length: int64 (D,), ids.
        split: int32 (D,), ids of the chosen half of a preference pair; else 0.
        layout: int64 (D,), which spans are the document's; documents that are laid out alike share them.
        offsets: int64 (L + 1,), the spans of layout l are [offsets[l], offsets[l + 1]).
        span_length, span_loss: int32 and uint8, ids and loss class (LOSS_NONE, …) of the spans.
    """

    shard: NDArray[np.int32]
    sample: NDArray[np.int32]
    template: NDArray[np.uint8]
    variant: NDArray[np.int32]
    frame: NDArray[np.int32]
    frames: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int64]
    split: NDArray[np.int32]
    layout: NDArray[np.int64]
    offsets: NDArray[np.int64]
    span_length: NDArray[np.int32]
    span_loss: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def cuttable(self) -> NDArray[np.bool_]:
        """Say which documents may be cut anywhere, bool (D,)."""
        return _CUTTABLE[self.template]

    def taken(self, places: NDArray[np.integer] | NDArray[np.bool_]) -> Drawn:
        """Take some of the documents; the spans stay."""
        return replace(self, **{name: getattr(self, name)[places] for name in _OF_DOCUMENTS})

    def document(self, number: int) -> Document:
        """Give one document as an object."""
        spans = slice(*self.offsets[self.layout[number] : self.layout[number] + 2])
        classes = [_LOSS_NAMES[loss] for loss in self.span_loss[spans].tolist()]
        return Document(
            sample=int(self.sample[number]),
            template=TEMPLATE_NAMES[self.template[number]],
            variant=int(self.variant[number]),
            spans=list(zip(self.span_length[spans].tolist(), classes, strict=True)),
            frame=int(self.frame[number]),
            frames=int(self.frames[number]),
            start=int(self.start[number]),
            split=int(self.split[number]),
        )


_OF_SPANS = ("offsets", "span_length", "span_loss")
_OF_DOCUMENTS = tuple(one.name for one in fields(Drawn) if one.name not in _OF_SPANS)


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Put documents one after the other, at least one part of them; the passes keep the numbers that they have."""
    layouts = np.cumsum([0, *(len(part.offsets) - 1 for part in parts)])
    spans = np.cumsum([0, *(len(part.span_length) for part in parts)])
    together = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_OF_DOCUMENTS, *_OF_SPANS)}
    together["layout"] = np.concatenate([part.layout + before for part, before in zip(parts, layouts, strict=False)])
    offsets = [part.offsets[:-1] + before for part, before in zip(parts, spans, strict=False)]
    together["offsets"] = np.concatenate([*offsets, spans[-1:]])
    return Drawn(**together)


def drawn_from(documents: Sequence[Document]) -> Drawn:
    """Give documents as arrays, of pass 0."""
    spans = list(chain.from_iterable(document.spans for document in documents))

    def column(name: str) -> NDArray[np.int32]:
        return np.array([getattr(document, name) for document in documents], np.int32)

    return Drawn(
        shard=np.zeros(len(documents), np.int32),
        template=np.array([TEMPLATE_NAMES.index(document.template) for document in documents], np.uint8),
        length=np.array([document.length for document in documents], np.int64),
        layout=np.arange(len(documents)),
        offsets=np.cumsum([0, *(len(document.spans) for document in documents)]),
        span_length=np.array([length for length, _ in spans], np.int32),
        span_loss=np.array([LOSSES[loss] for _, loss in spans], np.uint8),
        **{name: column(name) for name in ("sample", "variant", "frame", "frames", "start", "split")},
    )


@dataclass(kw_only=True)
class Refused:
    """Samples that gave no document: how many by reason, and (row, reason, message) of those worth naming."""

    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.dropped.total() + self.failed.total()

    def add(self, row: int, error: SampleError) -> None:
        """Leave one sample out."""
        (self.failed if error.reason == _FAILED else self.dropped)[error.reason] += 1
        self.listed.append((row, error.reason, error.message))

    def without(self, rows: NDArray[np.int64], is_refused: NDArray[np.bool_], error: SampleError) -> NDArray[np.int64]:
        """Leave the rows out that are marked, and give the others."""
        left_out = rows[is_refused]
        if error.reason not in _UNREMARKABLE:
            for row in left_out.tolist():
                self.add(row, error)
        elif len(left_out):
            self.dropped[error.reason] += len(left_out)
        return rows[~is_refused]

    def where(
        self, rows: NDArray[np.int64], codes: NDArray[np.integer], errors: Sequence[SampleError | None]
    ) -> NDArray[np.bool_]:
        """Leave each row out whose code has an error; says which rows stay."""
        stays: NDArray[np.bool_] = np.array([error is None for error in errors], np.bool_)[codes]
        for row, code in zip(rows[~stays].tolist(), codes[~stays].tolist(), strict=True):
            error = errors[code]
            if error is not None:
                self.add(row, error)
        return stays
