"""What is answered already when a unit begins to ask: in records of any unit about its shard, or in the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from tokenmill.pipelines.answer_journal import AnswerJournal
from tokenmill.pipelines.answers import best_answers, is_asked_again, read_answers, table_of
from tokenmill.pipelines.jobs import Job
from tokenmill.pipelines.questions import Question
from tokenmill.pipelines.selected import Selected


@dataclass(frozen=True, kw_only=True)
class AnswersBefore:
    """Answers by where they stand.

    Attributes:
        others: in records of other units.
        last: in this unit's last attempt, which a retry replaces.
        journaled: in the journal alone; `fresh` are the questions among them that this very attempt asked.
        totals: what the last attempt counted.
    """

    others: pl.DataFrame
    last: pl.DataFrame
    journaled: pl.DataFrame
    fresh: frozenset[str]
    totals: Mapping[str, int]
    is_retry: bool

    @cached_property
    def mine(self) -> pl.DataFrame:
        """What this unit's table will hold beside what is asked now."""
        return best_answers([self.last, self.journaled])

    @cached_property
    def _best(self) -> dict[str, Mapping[str, Any]]:
        rows = best_answers([self.others, self.mine]).iter_rows(named=True)
        return {row["request"]: row for row in rows}

    def is_open(self, question: Question, judged: Any) -> bool:
        """Tell whether a question has to be asked: no answer yet or, in a retry, none that `judged` finds good."""
        row = self._best.get(question.request)
        if row is None:
            return True
        if question.request in self.fresh:
            return False
        if is_asked_again(row):
            return True
        return self.is_retry and (row["texts"] is None or judged(question, row["texts"], row["finish_reason"]))


def nothing_before() -> AnswersBefore:
    """Return what stands before a unit of an engine that costs nothing: it is simply read again."""
    empty = table_of(())
    return AnswersBefore(
        others=empty, last=empty, journaled=empty, fresh=frozenset(), totals={}, is_retry=False
    )  # fmt: skip


def answers_before(job: Job, journal: AnswerJournal) -> AnswersBefore:
    """Read what there is of a unit's shard."""
    (target,) = job.targets
    folder, part = target.folder, job.unit.payload["part"]
    others = read_answers(folder, [one for one in job.unit.payload["earlier"] if one[0] != job.unit.name])
    last, totals = table_of(()), {}
    if target.attempt:
        record = folder.read_commit(job.unit.name, target.attempt - 1)
        last, totals = folder.read_rows(record), dict(record.totals)
    found = journal.known().filter(pl.col("key").is_in(_keys(part)))
    fresh = frozenset(found.filter("fresh")["request"])
    recorded = {*others["request"], *last["request"]} - fresh
    journaled = best_answers([found.drop("fresh").filter(~pl.col("request").is_in(list(recorded)))])
    return AnswersBefore(
        others=others, last=last, journaled=journaled, fresh=fresh, totals=totals, is_retry=target.attempt > 0
    )  # fmt: skip


def _keys(part: Selected) -> Sequence[str]:
    """Return the keys of the whole slice: what was paid for a sample that is not kept any more is kept all the same."""
    return list(part.piece.read(["key"])["key"])
