"""Stage choose: of all answers to a slice's samples, those that are good, and of these the ones that are used.

A query: no engine is asked, so other checks or another mix cost seconds (20,000 samples with two columns take 5 s). A
sample of which nothing may be used is a failed row with the reason of its first column. Reads the answers of every unit
about the shard. What tokenizing reads of it is its digest: where that stays the same, nothing is tokenized again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from tokenmill.captions.choice import Chosen, chosen
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.column_answers import ColumnAnswers, Said
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.earlier_records import EarlierRecords
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.questions import Asking
from tokenmill.pipelines.samples import FAILURE_COLUMNS, clip_seconds
from tokenmill.pipelines.selected import Selected
from tokenmill.settings_caption import CaptionSettings

VERSION = 1
SCHEMA = 1
COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "captions": pl.List(pl.String),
    "columns": pl.List(pl.String),  # which column each is from
    "questions": pl.List(pl.Struct({"question": pl.String, "answer": pl.String, "column": pl.String})),
    # What a long clip's caption (number `variant` of them) was put together from; seconds since the clip's beginning.
    "pieces": pl.List(
        pl.Struct({"variant": pl.Int32, "start_seconds": pl.Float64, "end_seconds": pl.Float64, "text": pl.String})
    ),
    **FAILURE_COLUMNS,
}
ONLY_COLUMN = "caption"  # what a recipe without named columns calls its one


def choose_work(
    store: Store,
    captions: CaptionSettings,
    modality: str,
    selected: Sequence[Selected],
    answers: Mapping[str, Snapshot],
    parents: Mapping[str, str],
) -> StageWork:
    """Describe the choice for one source; `answers` are the columns' snapshots."""
    source = selected[0].piece.source
    earlier = {name: EarlierRecords(snapshot.folder) for name, snapshot in answers.items()}
    units = []
    for index, part in enumerate(selected):
        digests = {name: snapshot.commits[index].digests["answers"] for name, snapshot in answers.items()}
        inputs = [InputRef(name=name, digest=digest) for name, digest in digests.items()]
        found = {name: (one.folder, earlier[name].about(part.piece)) for name, one in answers.items()}
        units.append(
            Unit(
                inputs=(part.piece.reference("rows"), part.kept_reference, *inputs),
                payload={"part": part, "answers": found},
            )
        )
    return StageWork(
        title=f"choose {source}",
        folders=(StageDir(store=store, source=source, config=_config(captions, source, answers)),),
        units=units,
        make_worker=partial(ChooseWorker, captions, modality, source),
        parents=parents,
    )


def _config(captions: CaptionSettings, source: str, answers: Mapping[str, Snapshot]) -> StageConfig:
    columns = {name: column.of_source(source) for name, column in captions.columns.items()}
    return StageConfig(
        stage="choose",
        version=VERSION,
        schema=SCHEMA,
        settings={
            "use": [list(slot.items()) for slot in captions.slots],
            "seed": captions.seed,
            "checks": {name: column.checks.model_dump(mode="json") for name, column in columns.items()},
            "form": {name: column.form for name, column in columns.items()},
        },
        fingerprints={name: snapshot.folder.config.digest for name, snapshot in answers.items()},
    )


class ChooseWorker:
    """Judges a slice's answers and draws which are used."""

    def __init__(self, captions: CaptionSettings, modality: str, source: str) -> None:
        self._captions = captions
        asking = {name: Asking.of(one, modality, source) for name, one in captions.columns.items()}
        self._columns = {name: ColumnAnswers(asking=one) for name, one in asking.items()}

    def close(self) -> None:
        for column in self._columns.values():
            column.asking.captioner.close()

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        part: Selected = job.unit.payload["part"]
        rows, carried = part.read(), part.carried()
        answers = job.unit.payload["answers"]
        found = {name: column.said(rows, carried, *answers[name]) for name, column in self._columns.items()}
        read_s = time.perf_counter() - started
        chosen_rows = [
            self._row(key, begin_s, {name: one[key] for name, one in found.items()})
            for key, begin_s in zip(rows["key"], _begins_s(rows), strict=True)
        ]
        commit = publish(job, job.targets[0], _output(pl.DataFrame(chosen_rows, schema=COLUMNS, orient="row")))
        return JobResult(
            commits=(commit,), seconds={"read": read_s, "query": time.perf_counter() - started - read_s}
        )  # fmt: skip

    def _row(self, key: str, begin_s: float, said: Mapping[str, Said]) -> tuple[Any, ...]:
        usable = {name: one.texts for name, one in said.items() if one.error is None and one.texts}
        found = chosen(self._captions.slots, usable, key=key, seed=self._captions.seed)
        questions = list(_questions(said))
        if not found and not questions:
            return (key, None, None, None, None, *failure_values("caption", self._why_none(said)))
        return (
            key,
            [one.text for one in found],
            [one.column for one in found],
            questions,
            list(_pieces(found, said, begin_s)),
            *failure_values("caption", None),
        )

    def _why_none(self, said: Mapping[str, Said]) -> SampleError:
        """Return the fault of the first column that is asked for and has one."""
        wanted = [*(name for slot in self._captions.slots for name in slot), *said]
        faults = [error for name in wanted if (error := said[name].error) is not None]
        return faults[0] if faults else SampleError("no_caption", "no column gave a caption that is used")


def _begins_s(rows: pl.DataFrame) -> list[float]:
    """Return when each clip begins in its film; pictures have no time."""
    if "start_frame" not in rows.columns:
        return [0.0] * rows.height
    return [clip_seconds(row)[0] for row in rows.iter_rows(named=True)]


def _questions(said: Mapping[str, Said]) -> Iterator[dict[str, str]]:
    """Yield every question once, with the first answer to it."""
    seen: set[str] = set()
    for column, one in said.items():
        for question, answer in one.pairs:
            if question not in seen:
                seen.add(question)
                yield {"question": question, "answer": answer, "column": column}


def _pieces(found: Sequence[Chosen], said: Mapping[str, Said], begin_s: float) -> Iterator[dict[str, Any]]:
    for variant, one in enumerate(found):
        for stretch in said[one.column].stretches:
            yield {
                "variant": variant,
                "start_seconds": round(stretch.start_seconds - begin_s, 3),
                "end_seconds": round(stretch.end_seconds - begin_s, 3),
                "text": stretch.text,
            }


def _output(table: pl.DataFrame) -> UnitOutput:
    failed = dict(sorted(Counter(table["fail_reason"].drop_nulls()).items()))
    kept = table.height - sum(failed.values())
    good = table.filter(pl.col("fail_reason").is_null())
    used = Counter([*good["columns"].explode().drop_nulls(), *_columns_of_questions(good)])
    return UnitOutput(
        rows=table,
        counts=Counts(rows_in=table.height, kept=kept, out=kept, failed=failed),
        digests={"captions": captions_digest(good)},
        totals={f"used.{name}": number for name, number in sorted(used.items())},
    )


def _columns_of_questions(good: pl.DataFrame) -> pl.Series:
    return good["questions"].explode().drop_nulls().struct.field("column")


def captions_digest(good: pl.DataFrame) -> str:
    """Return the digest of all that tokenizing reads.

    What says nothing is left out of it (names where there is but the unnamed column, no questions, no pieces), so that
    sources with one plain caption are named, and tokenized, as they were before there were columns.
    """
    named = good["columns"].explode().drop_nulls()
    told = ["key", "captions"]
    told += ["columns"] if (named != ONLY_COLUMN).any() else []
    told += [name for name in ("questions", "pieces") if good[name].list.len().sum()]
    return rows_digest(good.select(told))
