"""From a shard's index to the documents that a plan makes of it: all samples of a pass at once, as arrays.

What is decided for a sample hangs on its segments but for their numbers (`tokenize/layouts.py`), on its row and, where
the recipe holds samples out or excludes some, on its key: a million documents are drawn in a second. Only documents
longer than the context are made one by one (`plan_long.py`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.manifests.named_tables import NamedTable
from tokenmill.pipelines.plan_carried import in_part
from tokenmill.pipelines.plan_drawn import Drawn, Refused, drawn_from, joined
from tokenmill.pipelines.plan_exclusion import NOTHING, Exclusion
from tokenmill.pipelines.plan_laid_out import laid_out
from tokenmill.pipelines.plan_long import fitting, may_be_cut, too_long
from tokenmill.pipelines.plan_samples import Samples, drawn_samples
from tokenmill.pipelines.plan_spans import Document
from tokenmill.pipelines.plan_wanted import wanted_rows
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.layouts import scan_segments
from tokenmill.tokenize.segments import segments_from_json
from tokenmill.tokenize.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa


def draw_pass(
    index: NamedTable,
    shard: ShardPass,
    settings: PlanSettings,
    vocabulary: Vocabulary,
    exclusion: Exclusion = NOTHING,
    seen: NDArray[np.integer[Any]] | None = None,
) -> tuple[Drawn, Refused, int]:
    """Draw the documents of one pass over a shard, but for what is excluded and rows that were `seen` before.

    Returns them, the samples that are left out, and how many there were. Raises ManifestError for a damaged index.
    """
    modality, segments = index.codes(["modality", "segments"])
    tokenized = np.flatnonzero(np.asarray(segments.is_valid()))  # others failed there, and are never drawn
    tokenized = tokenized[in_part(tokenized, shard.part, shard.parts)]
    refused = Refused()
    unseen = tokenized
    if seen is not None:
        unseen = refused.without(tokenized, np.isin(tokenized, seen), SampleError("seen", "consumed before this plan"))
    row = wanted_rows(unseen, index, shard, settings, exclusion, refused)
    nothing = np.zeros(len(row), np.int64)
    samples = Samples(row=row, string=_codes(segments)[row], kind=_codes(modality)[row], variant=nothing,
                      template=nothing)  # fmt: skip
    scanned = scan_segments(segments.dictionary)
    names = modality.dictionary.to_pylist()
    samples = drawn_samples(samples, scanned, names, shard, settings, vocabulary, refused)
    drawn = laid_out(samples, scanned, vocabulary, refused)
    return _fitted(drawn, segments, settings, vocabulary, refused), refused, len(tokenized)


def _codes(column: pa.DictionaryArray) -> NDArray[np.int64]:
    return np.asarray(column.indices.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _fitted(
    drawn: Drawn, segments: pa.DictionaryArray, settings: PlanSettings, vocabulary: Vocabulary, refused: Refused
) -> Drawn:
    """Put what is made of documents that are too long in their places, or leave them out."""
    is_long = (drawn.length > settings.context) & ~drawn.cuttable
    if not is_long.any():
        return drawn
    made: list[Document] = []
    for number in np.flatnonzero(is_long).tolist():
        document = drawn.document(number)
        try:
            if not may_be_cut(settings):
                raise too_long(document, settings)
            told = segments[document.sample].as_py()
            made += fitting(document, segments_from_json(json.loads(told)), settings, vocabulary)
        except SampleError as error:
            refused.add(document.sample, error)
    together = joined([drawn.taken(~is_long), drawn_from(made)])
    return together.taken(np.argsort(together.sample, kind="stable"))
