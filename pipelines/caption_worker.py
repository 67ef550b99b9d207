"""Asks the engine of a column what is not answered yet, keeps every answer at once, and records them all.

Pictures are made in the decoding threads while the engine is asked; it pulls no more than it works on, so memory does
not hang on the unit. Batches of answers go to the journal before more is asked for.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tokenmill.captions.captioner import Answer, Request
from tokenmill.captions.checks import judge
from tokenmill.errors import RunError, SampleError
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.answer_journal import AnswerJournal
from tokenmill.pipelines.answers import answer_row, best_answers, shard_of, table_of
from tokenmill.pipelines.answers_before import AnswersBefore, answers_before, nothing_before
from tokenmill.pipelines.caption_pictures import PictureMaker
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.jobs import Job, JobResult, UnitOutput, publish
from tokenmill.pipelines.questions import Asking, Question
from tokenmill.pipelines.selected import Selected
from tokenmill.settings_caption import CaptionColumn

log = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0


@dataclass
class _Spent:
    """What was asked in one attempt at a unit."""

    started: float = field(default_factory=time.monotonic)
    answered: int = 0
    failed_in_a_row: int = 0
    output_tokens: int = 0
    told: float = field(default_factory=time.monotonic)


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
        self._name, self._limits = name, limits
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
        journal = AnswerJournal(target.folder, shard_of(part.piece.commit.inputs[0].name), name)
        try:
            return self._work(job, answers_before(job, journal), journal)
        finally:
            journal.close()

    def _work(self, job: Job, before: AnswersBefore, journal: AnswerJournal | None) -> JobResult:
        started = time.perf_counter()
        part: Selected = job.unit.payload["part"]
        rows = part.read()
        questions = list(self._asking.questions(rows, part.carried()))
        todo = [question for question in questions if before.is_open(question, self._judged)]
        read_s = time.perf_counter() - started
        asked: list[dict[str, Any]] = []
        for answered in self._asked(part, rows, todo):
            if journal is not None:
                journal.add(answered)
            asked += answered
        asked_s = time.perf_counter() - started - read_s
        commit = publish(job, job.targets[0], self._output(before, questions, asked, asked_s))
        if journal is not None:
            journal.settle([*before.others["request"], *before.mine["request"], *(row["request"] for row in asked)])
        seconds = {"read": read_s, "ask": asked_s, "write": time.perf_counter() - started - read_s - asked_s}
        return JobResult(commits=(commit,), seconds=seconds)

    def _asked(self, part: Selected, rows: pl.DataFrame, todo: Sequence[Question]) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of answered questions, as they come."""
        unasked = [q for q in todo if q.error is not None]
        if unasked:
            yield [answer_row(q, Answer(index=0, error=q.error), q.error) for q in unasked]
        asked, spent, broken = [q for q in todo if q.error is None], _Spent(), list[Answer]()
        for answers in self._asking.captioner.answers(self._requests(part, rows, asked, broken)):
            yield [self._row(asked[a.index], a, spent, len(asked)) for a in (*broken, *answers)]
            broken.clear()
        if broken:
            yield [self._row(asked[a.index], a, spent, len(asked)) for a in broken]

    def _requests(
        self, part: Selected, rows: pl.DataFrame, asked: Sequence[Question], broken: list[Answer]
    ) -> Iterator[Request]:
        """Yield requests with their pictures; what cannot be decoded goes to `broken` instead."""
        if self._pictures is None:
            for number, question in enumerate(asked):
                yield _request(number, question)
            return
        told = rows[[question.row for question in asked]].with_columns(
            pl.Series("piece_start_frame", [q.start_frame for q in asked], pl.Int64),
            pl.Series("piece_end_frame", [q.end_frame for q in asked], pl.Int64),
        )
        prepared = self._pictures.pictures(part.piece, told)
        for number, (question, one) in enumerate(zip(asked, prepared, strict=True)):
            if isinstance(one, SampleError):
                broken.append(Answer(index=number, error=one))
            else:
                yield _request(number, question, pictures=one.pictures, frames=one.frames, seconds=one.seconds)

    def _row(self, question: Question, answer: Answer, spent: _Spent, total: int) -> dict[str, Any]:
        error = answer.error or self._judged(question, answer.texts, answer.finish_reason)
        spent.answered += 1
        spent.output_tokens += answer.usage.output_tokens
        spent.failed_in_a_row = spent.failed_in_a_row + 1 if error is not None else 0
        if spent.failed_in_a_row > self._limits.failure_budget:
            raise RunError(
                f"caption {self._asking.source} {self._name}: {spent.failed_in_a_row} questions failed in a row, the "
                f"last with: {error}"
            )
        self._tell(spent, total)
        return answer_row(question, answer, error)

    def _judged(self, question: Question, texts: Iterable[str], finish_reason: str) -> SampleError | None:
        """Return what is wrong with an answer by the column's checks, or None."""
        return judged(self._asking, question, texts, finish_reason)

    def _tell(self, spent: _Spent, total: int) -> None:
        if time.monotonic() - spent.told < _LINE_EVERY_S:
            return
        spent.told = time.monotonic()
        seconds = spent.told - spent.started
        log.info(
            "caption %s %s: %d/%d answered in this unit, %.1f answers/s, %.0f tokens/s",
            self._asking.source, self._name, spent.answered, total, spent.answered / seconds,
            spent.output_tokens / seconds,
        )  # fmt: skip

    def _output(
        self, before: AnswersBefore, questions: Sequence[Question], asked: Sequence[Mapping[str, Any]], asked_s: float
    ) -> UnitOutput:
        """Make the unit's table: what was answered here, in this attempt or before it, and stands in no other."""
        places = {question.request: number for number, question in enumerate(questions)}
        mine = best_answers([before.mine, table_of(asked)])
        mine = mine.sort(pl.col("request").replace_strict(places, default=len(places), return_dtype=pl.Int64), "key")
        failed = dict(sorted(Counter(mine["fail_reason"].drop_nulls()).items()))
        kept = mine.height - sum(failed.values())
        best = best_answers([before.others, mine])
        told = pl.DataFrame({"request": list(places)}, schema={"request": pl.String}).join(best, on="request")
        return UnitOutput(
            rows=mine,
            counts=Counts(rows_in=mine.height, kept=kept, out=kept, failed=failed),
            digests={"answers": rows_digest(told.select("key", "piece", "texts", "finish_reason", "fail_reason"))},
            totals=self._totals(before, asked, asked_s),
        )

    def _totals(self, before: AnswersBefore, asked: Sequence[Mapping[str, Any]], asked_s: float) -> dict[str, int]:
        """Sum up what all answers cost, those too that were replaced since."""
        if not self._asking.captioner.asks:
            return {}
        new = pl.concat([before.journaled, table_of(asked)])
        prices = self._asking.column.prices
        tokens = {name: int(new[name].sum()) for name in ("requests", "input_tokens", "output_tokens")}
        cost = tokens["input_tokens"] * prices.input_per_million + tokens["output_tokens"] * prices.output_per_million
        sums = Counter(before.totals)
        sums.update(
            {**tokens, "questions": new.height, "cost_millionths": round(cost), "asking_ms": round(asked_s * 1e3)}
        )
        return dict(sorted(sums.items()))


def judged(asking: Asking, question: Question, texts: Iterable[str], finish_reason: str) -> SampleError | None:
    """Return what is wrong with an answer by the column's checks, or None; what nobody was asked for is not judged."""
    if not asking.captioner.asks:
        return None
    column = asking.column
    for text in texts:
        error = judge(
            text,
            template=question.template,
            system=column.system,
            finish_reason=finish_reason,
            checks=column.checks,
        )
        if error is not None:
            return error
    return None


def _request(number: int, question: Question, **seen: Any) -> Request:
    return Request(
        index=number,
        sample=question.sample,
        prompt=question.prompt,
        system=question.system,
        seed=question.seed,
        **seen,
    )
