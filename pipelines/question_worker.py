"""Answers the rows of one unit of a table of questions; the ids of an answer are kept beside its text.

Pictures are decoded and resized as they come, a batch of them is in memory at a time. A row that cannot be asked, or
whose picture is damaged, becomes a row with its reason.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from tokenmill.captions.captioner import Request
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.records import Counts
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.deadlines import renew
from tokenmill.pipelines.decoding import DecodeLimits, failure_values
from tokenmill.pipelines.drawing_prompts import check_words, key_of, sample_seed, text_of, whole_of
from tokenmill.pipelines.job_model import ModelPlace, close_model, opened_model
from tokenmill.pipelines.job_tables import NumberedRow, row_json
from tokenmill.pipelines.jobs import Job, JobResult, UnitOutput, publish
from tokenmill.pipelines.question_media import Media, MediaReader
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.settings_generate import QuestionJob

if TYPE_CHECKING:
    from tokenmill.generate.answering import AnswerIds, Answering, Question

STAGE = "answer"
ANSWER_COLUMNS: dict[str, Any] = {
    "key": pl.String,  # the row's place in its table
    "number": pl.Int64,
    "prompt_key": pl.String,  # the row's own key, or its place
    "question": pl.String,
    "system": pl.String,
    "seed": pl.Int64,
    "media_sha256": pl.String,
    "num_prompt": pl.Int64,  # ids that were asked, picture and all
    "answer": pl.String,
    "ids": pl.List(pl.Int32),  # of the answer, without EOS
    "finish_reason": pl.String,  # stop, or length where it was cut off
    "metadata": pl.String,  # the row as it was given, JSON
    **FAILURE_COLUMNS,
}
_LARGEST_SEED = 2**62
Row = dict[str, Any]


class QuestionWorker:
    """Reads, asks and writes one unit; `media` is the folder that pictures lie in."""

    def __init__(self, job: QuestionJob, place: ModelPlace, media: Store, limits: DecodeLimits, cpus: int) -> None:
        self._settings, self._place, self._cpus = job, place, cpus
        self._media = MediaReader(media, limits, job.frames)
        self._seconds: dict[str, float] = {}

    def close(self) -> None:
        self._media.close()
        close_model()

    def __call__(self, job: Job) -> JobResult:
        self._seconds = defaultdict(float)
        (target,) = job.targets
        answering = self._answering()
        rows: Sequence[NumberedRow] = job.unit.payload["rows"]
        size = self._settings.batch_size
        batches = (rows[start : start + size] for start in range(0, len(rows), size))
        told = [row for some in batches for row in self._answered(some, answering)]
        started = time.perf_counter()
        commit = publish(job, target, _output(pl.DataFrame(told, schema=ANSWER_COLUMNS, orient="row")))
        self._seconds["write"] += time.perf_counter() - started
        return JobResult(commits=(commit,), seconds=dict(self._seconds))

    def _answering(self) -> Answering:
        from tokenmill.generate.answering import Answering

        started = time.perf_counter()
        opened, job = opened_model(self._place, self._cpus), self._settings
        self._seconds["open"] += time.perf_counter() - started
        return Answering(
            model=opened.model, vision=opened.vision, picture_area=opened.area("image"), clip_area=opened.area("video"),
            fps=None, max_new=job.max_new, temperature=job.temperature, top_k=job.top_k,
        )  # fmt: skip

    def _answered(self, rows: Sequence[NumberedRow], answering: Answering) -> Iterator[Row]:
        """Yield the row of every question of a batch."""
        started = time.perf_counter()
        told: list[Row] = []
        questions: list[Question] = []
        for number, row in rows:
            about, question = self._question(number, row, answering)
            told.append(about)
            questions += [] if question is None else [question]
        self._seconds["decode"] += time.perf_counter() - started
        started = time.perf_counter()
        found = iter(answering.answered(questions))
        self._seconds["model"] += time.perf_counter() - started
        renew()
        for about in told:
            yield about if "fail_reason" in about else about | _answer(next(found), answering)

    def _question(self, number: int, row: Any, answering: Answering) -> tuple[Row, Question | None]:
        """Return what is told of a row, and its question unless it cannot be asked."""
        about: Row = {"key": f"{number:06d}", "number": number, "metadata": row_json(row)}
        try:
            if isinstance(row, SampleError):
                raise row
            question = text_of(row, self._settings.question_field, "")
            system = text_of(row, "system", self._settings.system)
            if not question.strip():
                raise SampleError("empty_prompt", f"{self._settings.question_field} is missing or empty")
            check_words(answering.model.vocabulary, question)
            seed = whole_of(row, "seed", sample_seed(self._settings.seed, number, 0), least=0, most=_LARGEST_SEED)
            media: Media = self._media(row)
        except SampleError as error:
            return about | _failure(error), None
        asked = Request(
            index=number, sample={}, prompt=question, system=system, seed=seed, frames=media.frames,
            seconds=media.seconds,
        )  # fmt: skip
        about |= {"prompt_key": key_of(row) or about["key"], "question": question, "system": system, "seed": seed}
        return about | {"media_sha256": media.sha256}, answering.question(asked)


def _answer(found: AnswerIds | SampleError, answering: Answering) -> Row:
    if isinstance(found, SampleError):
        return _failure(found)
    return {
        "num_prompt": len(found.prompt),
        "answer": answering.model.vocabulary.text.decode(found.ids.tolist()),
        "ids": found.ids,
        "finish_reason": "length" if answering.is_cut_off(found) else "stop",
    }


def _failure(error: SampleError) -> Row:
    return dict(zip(FAILURE_COLUMNS, failure_values(STAGE, error), strict=True))


def _output(frame: pl.DataFrame) -> UnitOutput:
    good = frame.filter(pl.col("fail_reason").is_null())
    failed = Counter(frame["fail_reason"].drop_nulls())
    counts = Counts(rows_in=frame.height, kept=good.height, out=good.height, failed=dict(sorted(failed.items())))
    totals = {"answers": good.height, "ids": int(good["ids"].list.len().sum() or 0)}
    told = [(row["key"], row["ids"]) for row in good.iter_rows(named=True)]
    return UnitOutput(rows=frame, counts=counts, digests={"answers": digest_of(told)}, totals=totals)
