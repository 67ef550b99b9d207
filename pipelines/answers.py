"""The table of a column's answers, and the one answer that counts where a question was asked more than once.

A row a question; every unit's table holds what was first asked in that unit (an increment), so all answers to a shard
lie in the tables of several units. What was paid for is never written twice and never removed but by name.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from tokenmill.captions.captioner import Answer
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import safe_name
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.questions import Question
from tokenmill.pipelines.samples import FAILURE_COLUMNS

SCHEMA = 2  # 1 had captions alone, one engine a source
COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "piece": pl.Int32,  # of a long clip
    "pieces": pl.Int32,
    "start_seconds": pl.Float64,  # since the film's start; null of pictures
    "end_seconds": pl.Float64,
    "request": pl.String,  # digest of what was asked
    "texts": pl.List(pl.String),  # as answered; null where nothing was
    "model": pl.String,  # as the engine says
    "finish_reason": pl.String,
    "requests": pl.Int32,
    "input_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "seconds": pl.Float64,
    "retried": pl.String,  # why it was asked again: JSON, reason → times
    **FAILURE_COLUMNS,
}
Records = Sequence[tuple[str, int]]  # unit and attempt
_STEM = re.compile(r"(.*?)(-\d{8})?-[0-9a-f]{16}")


def answer_row(question: Question, answer: Answer, error: SampleError | None) -> dict[str, Any]:
    """Describe an answer; `error` is why it is not one, or not a good one."""
    return {
        "key": question.key,
        "piece": question.piece,
        "pieces": question.pieces,
        "start_seconds": question.start_seconds,
        "end_seconds": question.end_seconds,
        "request": question.request,
        "texts": None if answer.error else [_storable(text) for text in answer.texts],
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "requests": answer.usage.requests,
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "seconds": round(answer.seconds, 4),
        "retried": json.dumps(dict(answer.usage.retried), sort_keys=True),
        **dict(zip(FAILURE_COLUMNS, failure_values("caption", error), strict=True)),
    }


def table_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return rows as a table."""
    return pl.DataFrame(list(rows), schema=COLUMNS, orient="row")


def read_answers(folder: StageDir, records: Records) -> pl.DataFrame:
    """Return the answers of some records, the best one to each question."""
    tables = [folder.read_rows(folder.read_commit(unit, attempt)) for unit, attempt in records]
    return best_answers([table_of(()), *tables])


def best_answers(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return one row a question: a good answer before a bad one before none, the later before the earlier."""
    rank = pl.when(pl.col("fail_reason").is_null()).then(2).when(pl.col("texts").is_not_null()).then(1).otherwise(0)
    joined = pl.concat(tables).with_columns(rank.alias("rank"))
    best = joined.sort("rank", maintain_order=True).unique("request", keep="last", maintain_order=True)
    return best.drop("rank")


def is_asked_again(row: Mapping[str, Any]) -> bool:
    """Tell whether a question counts as not answered yet: only a passing fault kept it from that."""
    return row["texts"] is None and bool(row["fail_transient"])


def records_by_shard(folder: StageDir) -> dict[str, list[tuple[str, int]]]:
    """Return the newest records of a folder by the name of the shard they are about."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for unit, attempt in sorted(folder.record_names().items()):
        match = _STEM.fullmatch(unit)
        if match:
            found[match[1]].append((unit, attempt))
    return found


def shard_of(name: str) -> str:
    """Return how an input's name stands in the names of its units."""
    return safe_name(name)


def _storable(text: str) -> str:
    """Replace lone surrogates, which JSON lets through and no file can hold."""
    return text.encode("utf-8", "replace").decode()
