"""The table of a column's answers, and the one answer that counts where a question was asked more than once.

A row an answer, good or bad, those too that were asked for again: what was paid for is never removed but by name. Every
unit's table holds what was asked in that unit (an increment), so all answers to a shard lie in the tables of several.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from tokenmill.captions.captioner import Answer
from tokenmill.errors import ManifestError, SampleError
from tokenmill.manifests.stagedir import StageDir, stage_dir_at
from tokenmill.manifests.storage import Store
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
    "asked": pl.String,  # which asking it was: no two answers have the same; null of what nobody was asked for
    "texts": pl.List(pl.String),  # as answered; null where nothing was
    "model": pl.String,  # as the engine says
    "finish_reason": pl.String,
    "requests": pl.Int32,
    "input_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "seconds": pl.Float64,
    "retried": pl.String,  # why it was asked again: JSON, reason → times
    **FAILURE_COLUMNS,
    "drop_reason": pl.String,  # `asked_again`: another answer to the question takes its place
}
REPLACED = "asked_again"
Records = Sequence[tuple[str, int]]  # unit and attempt


def answer_row(
    question: Question, answer: Answer, error: SampleError | None, asked: str | None = None
) -> dict[str, Any]:
    """Describe an answer; `error` is why it is not one, or not a good one, `asked` names the asking."""
    return {
        "key": question.key,
        "piece": question.piece,
        "pieces": question.pieces,
        "start_seconds": question.start_seconds,
        "end_seconds": question.end_seconds,
        "request": question.request,
        "asked": asked,
        "texts": None if answer.error else [_storable(text) for text in answer.texts],
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "requests": answer.usage.requests,
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "seconds": round(answer.seconds, 4),
        "retried": json.dumps(dict(answer.usage.retried), sort_keys=True),
        **dict(zip(FAILURE_COLUMNS, failure_values("caption", error), strict=True)),
        "drop_reason": None,
    }


def table_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return rows as a table."""
    return pl.DataFrame(list(rows), schema=COLUMNS, orient="row")


def read_all_answers(folder: StageDir, records: Records) -> pl.DataFrame:
    """Return the answers of some records, those too that were asked for again, in the order of the records."""
    tables = [folder.read_rows(folder.read_commit(unit, attempt)) for unit, attempt in records]
    return pl.concat([table_of(()), *tables])


def read_answers(folder: StageDir, records: Records) -> pl.DataFrame:
    """Return the answers of some records, the best one to each question."""
    return best_answers(read_all_answers(folder, records))


def best_answers(answers: pl.DataFrame) -> pl.DataFrame:
    """Return one row a question: a good answer before a bad one before none, the later before the earlier.

    Good by the checks of its time; whoever has newer ones has to look at all answers (`read_all_answers`).
    """
    is_good = pl.col("fail_reason").is_null() & pl.col("drop_reason").is_null()
    rank = pl.when(is_good).then(2).when(pl.col("texts").is_not_null()).then(1).otherwise(0)
    ranked = answers.with_columns(rank.alias("rank")).sort("rank", maintain_order=True)
    return ranked.unique("request", keep="last", maintain_order=True).drop("rank")


def with_replaced(answers: pl.DataFrame) -> pl.DataFrame:
    """Say of all but the best answer to each question that it was asked again: a row is good, failed or dropped."""
    best = best_answers(answers.with_row_index("place"))["place"]
    is_replaced = ~pl.int_range(pl.len()).is_in(best.implode())
    return answers.with_columns(
        pl.when(~is_replaced).then("fail_stage").alias("fail_stage"),
        pl.when(~is_replaced).then("fail_reason").alias("fail_reason"),
        pl.when(is_replaced).then(pl.lit(REPLACED)).alias("drop_reason"),
    )


def without_vain(answers: pl.DataFrame) -> pl.DataFrame:
    """Leave out what nobody was asked for, but for the last word on a question that has no answer else."""
    asked = answers.filter(pl.col("asked").is_not_null())["request"].unique()
    rows = answers.with_row_index("place").with_columns(is_asked=pl.col("asked").is_not_null())
    vain = rows.filter(~pl.col("is_asked") & ~pl.col("request").is_in(asked.implode()))
    last = vain.unique("request", keep="last", maintain_order=True)
    return pl.concat([rows.filter("is_asked"), last]).sort("place").drop("place", "is_asked")


def is_paid_for(store: Store, path: str) -> bool:
    """Say whether a folder of stage caption holds answers that cost something: such an engine has prompts."""
    if not path.startswith("caption/") or not store.exists(f"{path}/config.json"):
        return False
    try:
        return "prompt" in stage_dir_at(store, path).config.settings
    except ManifestError:
        return True  # nobody knows: nothing may be lost


def _storable(text: str) -> str:
    """Replace lone surrogates, which JSON lets through and no file can hold."""
    return text.encode("utf-8", "replace").decode()
