"""Draws documents of a few samples as a plan does, through an index of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.manifests.named_tables import NamedTable
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.pipelines.plan_documents import draw_pass
from tokenmill.pipelines.plan_drawn import Drawn, Refused
from tokenmill.pipelines.plan_exclusion import read_exclusion
from tokenmill.pipelines.plan_spans import Document
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import Vocabulary

PASS = ShardPass(source="s", archive="a.tar", index="i.parquet", digest="d", repetition=0, share=1.0, num_samples=0)
INDEX = {"key": pl.String, "modality": pl.String, "segments": pl.String, "num_text": pl.Int32, "num_codes": pl.Int32}


def drawn_of(
    rows: Sequence[dict[str, Any]], settings: PlanSettings, vocabulary: Vocabulary, **changes: Any
) -> tuple[Drawn, Refused, int]:
    """Draw the documents of index rows (key, modality, segments) in one pass; `changes` are the pass's."""
    sized = [{"num_text": None, "num_codes": None, **row} for row in rows]
    index = NamedTable(path="i.parquet", data=table_bytes(pl.DataFrame(sized, schema=INDEX), 1))
    return draw_pass(index, replace(PASS, **changes), settings, vocabulary, read_exclusion(settings))


def documents_of(row: dict[str, Any], settings: PlanSettings, vocabulary: Vocabulary) -> list[Document]:
    """Draw the documents of one sample; raises why there are none."""
    drawn, refused, _ = drawn_of([row], settings, vocabulary)
    for _, reason, message in refused.listed:
        raise SampleError(reason, message)
    return [drawn.document(number) for number in range(len(drawn))]
