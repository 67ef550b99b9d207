"""What is answered already when a unit begins to ask: in records of any unit about its files, or in the journal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tokenmill.pipelines.answer_journal import JOURNALED, AnswerJournal
from tokenmill.pipelines.answers import COLUMNS, read_all_answers, table_of
from tokenmill.pipelines.jobs import Job
from tokenmill.pipelines.questions import Question

Judged = Callable[[Question, Sequence[str], str], object]  # what is wrong with an answer, if anything


@dataclass(frozen=True, slots=True)
class _Said:
    """What one asking came to."""

    texts: Sequence[str] | None
    finish_reason: str
    is_passing: bool
    is_mine: bool


@dataclass(frozen=True, kw_only=True)
class AnswersBefore:
    """Answers by where they stand, all about samples of the unit's slice.

    Attributes:
        others: in records of other units.
        last: in this unit's last attempt, which a retry replaces.
        journaled: in the journal alone, with the columns of it: paid for, and counted by no record yet.
        totals: what the last attempt counted.
    """

    others: pl.DataFrame
    last: pl.DataFrame
    journaled: pl.DataFrame
    totals: Mapping[str, int] = field(default_factory=dict)
    is_retry: bool = False
    _said: Mapping[str, Sequence[_Said]] = field(default_factory=dict)

    @property
    def mine(self) -> pl.DataFrame:
        """What this unit's table will hold beside what is asked now."""
        return pl.concat([self.last, self.journaled.select(COLUMNS.keys())])

    def is_open(self, question: Question, judged: Judged) -> bool:
        """Tell whether a question has to be asked.

        It has, where nobody ever answered and the last fault may pass; in a retry, where no answer is good by `judged`
        and this attempt got none (in a run that was killed) that another asking would not mend.
        """
        said = self._said.get(question.request, ())
        if not self.is_retry:
            return not any(one.texts is not None for one in said) and (not said or said[-1].is_passing)
        if any(one.is_mine and not (one.texts is None and one.is_passing) for one in said):
            return False
        return all(one.texts is None or judged(question, one.texts, one.finish_reason) is not None for one in said)


def nothing_before() -> AnswersBefore:
    """Return what stands before a unit of an engine that costs nothing: it is simply read again."""
    return AnswersBefore(others=table_of(()), last=table_of(()), journaled=pl.DataFrame(schema=JOURNALED))


def answers_before(job: Job, journal: AnswerJournal) -> AnswersBefore:
    """Read what there is about a unit's slice: of all its samples, for what was paid for one that is not kept any more
    is kept all the same."""
    (target,) = job.targets
    folder, part = target.folder, job.unit.payload["part"]
    keys = part.piece.read(["key"])["key"].implode()
    records = [one for one in job.unit.payload["earlier"] if one[0] != job.unit.name]
    others = read_all_answers(folder, records).filter(pl.col("key").is_in(keys))
    last, totals = table_of(()), {}
    if target.attempt:
        record = folder.read_commit(job.unit.name, target.attempt - 1)
        last, totals = folder.read_rows(record), dict(record.totals)
    recorded = pl.concat([others["asked"], last["asked"]]).drop_nulls().implode()
    known = journal.known().filter(pl.col("key").is_in(keys))
    journaled = known.filter(~pl.col("asked").is_in(recorded)).unique("asked", keep="first", maintain_order=True)
    return AnswersBefore(
        others=others,
        last=last,
        journaled=journaled,
        totals=totals,
        is_retry=target.attempt > 0 or job.unit.payload["retry_failed"],
        _said=_by_question([others, last, journaled], journal),
    )


def _by_question(tables: Sequence[pl.DataFrame], journal: AnswerJournal) -> dict[str, list[_Said]]:
    found: dict[str, list[_Said]] = defaultdict(list)
    wanted: list[Any] = ["request", "asked", "texts", "finish_reason", "fail_transient"]
    for table in tables:
        for request, asked, texts, finish_reason, is_passing in table.select(wanted).iter_rows():
            is_mine = asked is not None and journal.is_mine(asked)
            found[request].append(_Said(texts, finish_reason, bool(is_passing), is_mine))
    return dict(found)
