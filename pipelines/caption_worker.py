"""Asks the engine of a column what is not answered yet, keeps every answer at once, and records them all.

Pictures are made in the decoding threads while the engine is asked; it pulls no more than it works on, so memory does
not hang on the unit. Batches of answers go to the journal before more is asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import polars as pl

from tokenmill.captions.captioner import Answer
from tokenmill.captions.checks import judge
from tokenmill.captions.tidying import tidied
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Commit, Counts
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answer_journal import JOURNALED, AnswerJournal
from tokenmill.pipelines.answers import COLUMNS, answer_row, read_all_answers, with_replaced, without_vain
from tokenmill.pipelines.answers_before import AnswersBefore, answers_before, nothing_before
from tokenmill.pipelines.caption_pictures import PictureMaker
from tokenmill.pipelines.caption_questions import UnitQuestions
from tokenmill.pipelines.caption_spending import AskingProgress, FailureBudget, totals_with
from tokenmill.pipelines.deadlines import renew
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.earlier_records import EarlierRecords
from tokenmill.pipelines.jobs import Job, JobResult, UnitOutput, publish
from tokenmill.pipelines.questions import Asking, Question
from tokenmill.pipelines.selected import Selected
from tokenmill.settings_caption import CaptionColumn

Rows = list[dict[str, Any]]
_TABLE_ROWS = 1000


class CaptionWorker:
    """Finds what is not answered yet, asks the engine, keeps every answer at once and records them all."""

    def __init__(
        self,
        name: str,
        column: CaptionColumn,
        modality: str,
        source: str,
        source_settings: Mapping[str, Any],
        limits: DecodeLimits,
    ) -> None:
        self._title, self._limits = f"caption {source} {name}", limits
        self._asking = Asking.of(column, modality, source)
        captioner = self._asking.captioner
        self._reader: SampleReader | None = None
        self._pictures: PictureMaker | None = None
        if captioner.takes != "text":
            self._reader = SampleReader(source, source_settings, limits)
            frames = self._asking.column.frames
            self._pictures = PictureMaker(self._reader, captioner.takes, captioner.max_side_px, modality, frames)

    def close(self) -> None:
        self._asking.captioner.close()
        if self._reader is not None:
            self._reader.close()

    def __call__(self, job: Job) -> JobResult:
        if not self._asking.captioner.asks:
            return self._work(job, nothing_before(), None)
        (target,) = job.targets
        part: Selected = job.unit.payload["part"]
        name = f"{job.unit.name[-16:]}.{target.attempt}"
        journal = AnswerJournal(target.folder, part.piece.commit.inputs[0].name, name)
        with closing(journal):
            return self._work(job, answers_before(job, journal), journal)

    def _work(self, job: Job, before: AnswersBefore, journal: AnswerJournal | None) -> JobResult:
        started = time.perf_counter()
        (target,) = job.targets
        questions = UnitQuestions(
            asking=self._asking,
            part=job.unit.payload["part"],
            pictures=self._pictures,
            is_open=lambda question: before.is_open(question, self._judged),
        )
        read_s = time.perf_counter() - started
        new = _tabled(self._asked(questions, journal, before.is_retry))
        asked_s = time.perf_counter() - started - read_s
        commit = publish(job, target, self._output(before, questions.places, new))
        if journal is not None:
            _settle(journal, before, target.folder, commit, job.unit.payload["part"])
        seconds = {"read": read_s, "ask": asked_s, "write": time.perf_counter() - started - read_s - asked_s}
        return JobResult(commits=(commit,), seconds=seconds, rows=new.height)

    def _asked(self, questions: UnitQuestions, journal: AnswerJournal | None, is_retry: bool) -> Iterator[Rows]:
        """Yield the rows of answered questions as they come, with those that nobody could be asked."""
        budget = FailureBudget(self._title, self._limits.failure_budget, is_retry)
        progress = AskingProgress(self._title, len(questions))
        for some in self._answers(questions):
            broken = [self._row(*one, None) for one in questions.emptied()]
            rows = [self._row(questions.answered(one), one, journal) for one in some]
            if rows and journal is not None:
                rows[0]["asking_ms"] = progress.since_last_ms()
                journal.add(rows)
            renew()
            progress.take_in(rows)
            yield [*broken, *rows]
            if journal is not None:
                budget.take_in(rows)
        forgotten = [self._row(*one, None) for one in questions.forgotten()]
        unasked = [self._row(*one, None) for one in questions.emptied()]
        yield [*unasked, *forgotten]
        if not questions.num_asked and len(unasked) == len(questions.places):
            budget.take_in(unasked)  # not some samples lack a field: the prompt names a wrong one

    def _answers(self, questions: UnitQuestions) -> Iterator[Sequence[Answer]]:
        """Yield what the engine answers; it is not even begun where there is nothing to ask."""
        if not questions.any_open():
            return
        answers = self._asking.captioner.answers(questions.requests())
        try:
            yield from answers
        finally:
            if callable(close := getattr(answers, "close", None)):
                close()

    def _row(self, question: Question, answer: Answer, journal: AnswerJournal | None) -> dict[str, Any]:
        """Describe an answer; without a journal it is one that cost nothing."""
        error = answer.error or self._judged(question, answer.texts, answer.finish_reason)
        asked = journal.new_asking() if journal is not None else None
        return answer_row(question, answer, error, asked) | {"asking_ms": 0}

    def _judged(self, question: Question, texts: Iterable[str], finish_reason: str) -> SampleError | None:
        """Return what is wrong with an answer by the column's checks, or None."""
        return judged(self._asking, question, map(tidied, texts), finish_reason)

    def _output(self, before: AnswersBefore, places: Mapping[str, int], new: pl.DataFrame) -> UnitOutput:
        """Make the unit's table: what was answered here, in this attempt or before it, and stands in no other."""
        place = pl.col("request").replace_strict(dict(places), default=len(places), return_dtype=pl.Int64)
        mine = without_vain(pl.concat([before.mine, new.select(COLUMNS.keys())]))
        mine = with_replaced(mine.sort(place, "key", "piece", maintain_order=True))
        every = pl.concat([before.others, mine])
        asked = pl.DataFrame({"request": list(places)}, schema={"request": pl.String})
        told = asked.join(every, on="request", how="inner", maintain_order="left_right")
        good = told.filter(pl.col("fail_reason").is_null() & pl.col("drop_reason").is_null())["request"].n_unique()
        totals: dict[str, int] = {}
        if self._asking.captioner.asks:
            paid = pl.concat([before.journaled, new]).filter(pl.col("asked").is_not_null())
            totals = totals_with(
                before.totals, paid.iter_rows(named=True), self._asking.column.prices, asked.height - good
            )
        return UnitOutput(rows=mine, counts=counts_of(mine), digests={"answers": answers_digest(told)}, totals=totals)


def _tabled(answered: Iterable[Rows]) -> pl.DataFrame:
    """Collect answers as they come; their table is made bit by bit, while others are being answered."""
    rows, tables = Rows(), list[pl.DataFrame]()
    for some in answered:
        rows += some
        if len(rows) >= _TABLE_ROWS:
            tables.append(pl.DataFrame(rows, schema=JOURNALED, orient="row"))
            rows = Rows()
    return pl.concat([*tables, pl.DataFrame(rows, schema=JOURNALED, orient="row")])


def _settle(journal: AnswerJournal, before: AnswersBefore, folder: StageDir, commit: Commit, part: Selected) -> None:
    """Let go of what stands in records: this unit's, or another run's if that was first; seldom also newer ones of
    other cuts of the shard, which somebody else's journal may speak of as well."""
    stands = folder.read_rows(commit, ["asked"])["asked"]
    if journal.settle(pl.concat([before.others["asked"], stands]).drop_nulls()):
        journal.settle(read_all_answers(folder, EarlierRecords(folder).about(part.piece))["asked"].drop_nulls())


def counts_of(answers: pl.DataFrame) -> Counts:
    """Count a unit's answers: the best one to each question, good or failed, and those it replaced."""
    failed, dropped = (
        dict(sorted(Counter(answers[name].drop_nulls()).items())) for name in ("fail_reason", "drop_reason")
    )
    kept = answers.height - sum(failed.values()) - sum(dropped.values())
    return Counts(rows_in=answers.height, kept=kept, out=kept, failed=failed, dropped=dropped)


def answers_digest(told: pl.DataFrame) -> str:
    """Return what a choice among answers hangs on: every text, and where there is none, why."""
    texts = told.filter(pl.col("texts").is_not_null())
    none = told.join(texts, on="request", how="anti", maintain_order="left").unique(
        "request", keep="last", maintain_order=True
    )
    seen = ["key", "piece", "request", "texts", "finish_reason"]
    without = none.select("key", "piece", "request", "fail_reason")
    return rows_digest(pl.DataFrame({"texts": [rows_digest(texts.select(seen))], "none": [rows_digest(without)]}))


def judged(asking: Asking, question: Question, texts: Iterable[str], finish_reason: str) -> SampleError | None:
    """Return what is wrong with an answer by the column's checks, or None; what nobody was asked for is not judged.

    `texts` are as `tidied` returns them.
    """
    if not asking.captioner.asks:
        return None
    column = asking.column
    for text in texts:
        error = judge(
            text,
            prompt_template=question.template,
            system_template=column.system,
            finish_reason=finish_reason,
            checks=column.checks,
        )
        if error is not None:
            return error
    return None
