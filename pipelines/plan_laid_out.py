"""The documents of drawn samples: their lengths and spans, laid out once for all that are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_drawn import Drawn, Refused
from tokenmill.pipelines.plan_samples import Samples
from tokenmill.pipelines.plan_templates import TEMPLATE_NAMES
from tokenmill.tokenize.layouts import MARKER, Layouts, Scanned, distinct_of, lay_out_scanned
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.tokenize.vocabulary import Vocabulary

_EMPTY = SampleError("empty", "no id of a text or a picture")


def laid_out(samples: Samples, scanned: Scanned, vocabulary: Vocabulary, refused: Refused) -> Drawn:
    """Lay the samples' documents out; those without any id of a text or a picture are left out."""
    layout, found = _layouts(samples, scanned, vocabulary)
    is_empty = found.content == 0
    stays = refused.where(samples.row, is_empty[layout].astype(np.int64), [None, _EMPTY])
    samples, layout = samples.where(stays), layout[stays]
    none = np.zeros(len(layout), np.int32)
    return Drawn(
        shard=none,
        sample=samples.row.astype(np.int32),
        template=samples.template.astype(np.uint8),
        variant=samples.variant.astype(np.int32),
        frame=none,
        frames=none,
        start=none,
        length=found.total[layout],
        split=found.split[layout],
        layout=layout,
        offsets=found.offsets,
        span_length=found.span_length,
        span_loss=found.span_loss,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Spans of L layouts as `Drawn` has them.

    `total` counts all ids of each, `content` those of texts and pictures, `split` those of a pair's chosen half.
    """

    offsets: NDArray[np.int64]
    span_length: NDArray[np.int32]
    span_loss: NDArray[np.uint8]
    total: NDArray[np.int64]
    content: NDArray[np.int64]
    split: NDArray[np.int32]


def _layouts(samples: Samples, scanned: Scanned, vocabulary: Vocabulary) -> tuple[NDArray[np.int64], _Found]:
    """Lay out each distinct (template, caption, string); gives which one is each sample's."""
    num_strings, num_variants = max(1, len(scanned.signature)), int(samples.variant.max(initial=0)) + 1
    keys = (samples.template * num_variants + samples.variant) * num_strings + samples.string
    distinct, layout = distinct_of(keys)  # ascending, so template by template
    rest, strings = np.divmod(distinct, num_strings)
    templates, variants = np.divmod(rest, num_variants)
    parts, split = [], np.zeros(len(distinct), np.int32)
    for template in np.unique(templates).tolist():
        name, here = TEMPLATE_NAMES[template], templates == template
        parts.append(lay_out_scanned(scanned, strings[here], name, variants[here], vocabulary)[0])
        if name == PREFERENCE:
            split[here] = lay_out_scanned(scanned, strings[here], "chosen", variants[here], vocabulary)[0].totals
    return layout, _joined(parts, split)


def _joined(parts: list[Layouts], split: NDArray[np.int32]) -> _Found:
    before = np.cumsum([0, *(len(part.length) for part in parts)])
    length = np.concatenate([np.empty(0, np.int32), *(part.length for part in parts)])
    kind = np.concatenate([np.empty(0, np.uint8), *(part.kind for part in parts)])
    starts = [part.offsets[:-1] + start for part, start in zip(parts, before, strict=False)]
    offsets = np.concatenate([*starts, before[-1:]])
    ends = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
    content = np.concatenate([[0], np.cumsum(np.where(kind == MARKER, 0, length), dtype=np.int64)])
    return _Found(
        offsets=offsets,
        span_length=length,
        span_loss=np.concatenate([np.empty(0, np.uint8), *(part.loss for part in parts)]),
        total=np.diff(ends[offsets]),
        content=np.diff(content[offsets]),
        split=split,
    )
