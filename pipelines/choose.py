"""Stage choose: of all answers to a slice's samples, those that are good, and of these the ones that are used.

A query: no engine is asked, so other checks or another mix cost seconds. A sample without any caption that may be used
is a failed row with the reason of its first column. Reads the answers of every unit about the shard.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from tokenmill.captions.checks import tidied
from tokenmill.captions.choice import chosen
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.answers import read_answers, records_by_shard, shard_of
from tokenmill.pipelines.caption_worker import judged
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.questions import Asking, Question
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.selected import Selected
from tokenmill.settings_caption import CaptionSettings

VERSION = 1
SCHEMA = 1
COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "captions": pl.List(pl.String),
    "columns": pl.List(pl.String),  # which column each is from
    **FAILURE_COLUMNS,
}


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
    columns = {name: column.of_source(source) for name, column in captions.columns.items()}
    config = StageConfig(
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
    shards = {name: records_by_shard(snapshot.folder) for name, snapshot in answers.items()}
    units = []
    for index, part in enumerate(selected):
        shard = shard_of(part.piece.commit.inputs[0].name)
        digests = {name: snapshot.commits[index].digests["answers"] for name, snapshot in answers.items()}
        inputs = [InputRef(name=name, digest=digest) for name, digest in digests.items()]
        found = {name: (one.folder, shards[name].get(shard, ())) for name, one in answers.items()}
        units.append(
            Unit(
                inputs=(part.piece.reference("rows"), part.kept_reference, *inputs),
                payload={"part": part, "answers": found},
            )
        )
    return StageWork(
        title=f"choose {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=units,
        make_worker=partial(ChooseWorker, captions, modality, source),
        parents=parents,
    )


@dataclass(frozen=True, kw_only=True)
class _Usable:
    """What one column says of a sample: texts that may be used, or why none may."""

    texts: tuple[str, ...] = ()
    error: SampleError | None = None


class ChooseWorker:
    """Judges a slice's answers and draws which are used."""

    def __init__(self, captions: CaptionSettings, modality: str, source: str) -> None:
        self._captions = captions
        self._asking = {name: Asking.of(one, modality, source) for name, one in captions.columns.items()}

    def close(self) -> None:
        for asking in self._asking.values():
            asking.captioner.close()

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        part: Selected = job.unit.payload["part"]
        rows = part.read()
        found = {
            name: self._usable(asking, rows, part.carried(), *job.unit.payload["answers"][name])
            for name, asking in self._asking.items()
        }
        read_s = time.perf_counter() - started
        table = pl.DataFrame(
            [self._row(key, {name: one[key] for name, one in found.items()}) for key in rows["key"]],
            schema=COLUMNS,
            orient="row",
        )
        commit = publish(job, job.targets[0], _output(table))
        return JobResult(
            commits=(commit,), seconds={"read": read_s, "query": time.perf_counter() - started - read_s}
        )  # fmt: skip

    def _usable(
        self,
        asking: Asking,
        rows: pl.DataFrame,
        carried: Sequence[str],
        folder: StageDir,
        records: Sequence[tuple[str, int]],
    ) -> dict[str, _Usable]:
        """Return what a column says of each sample, by key."""
        answers = {row["request"]: row for row in read_answers(folder, records).iter_rows(named=True)}
        pieces: dict[str, list[_Usable]] = defaultdict(list)
        for question in asking.questions(rows, carried):
            pieces[question.key].append(_said(asking, question, answers.get(question.request)))
        return {key: _whole(some) for key, some in pieces.items()}

    def _row(self, key: str, said: Mapping[str, _Usable]) -> tuple[Any, ...]:
        usable = {name: one.texts for name, one in said.items() if one.error is None}
        found = chosen(self._captions.slots, usable, key=key, seed=self._captions.seed)
        if found:
            return (key, [one.text for one in found], [one.column for one in found], *failure_values("caption", None))
        first = next(iter(self._captions.slots[0]))
        return (key, None, None, *failure_values("caption", said[first].error))


def _said(asking: Asking, question: Question, row: Mapping[str, Any] | None) -> _Usable:
    if row is None:
        return _Usable(error=SampleError("not_asked", "there is no answer yet"))
    if row["texts"] is None:
        return _Usable(error=SampleError(row["fail_reason"], row["fail_message"], transient=row["fail_transient"]))
    error = judged(asking, question, row["texts"], row["finish_reason"])
    if error is not None:
        return _Usable(error=error)
    return _Usable(texts=tuple(map(tidied, row["texts"])) if asking.captioner.asks else tuple(row["texts"]))


def _whole(pieces: Sequence[_Usable]) -> _Usable:
    """Put the stretches of a long clip together: its caption tells of all of them, in order."""
    if len(pieces) == 1:
        return pieces[0]
    for piece in pieces:
        if piece.error is not None:
            return piece
    return _Usable(texts=(" ".join(piece.texts[0] for piece in pieces),))


def _output(table: pl.DataFrame) -> UnitOutput:
    failed = dict(sorted(Counter(table["fail_reason"].drop_nulls()).items()))
    kept = table.height - sum(failed.values())
    good = table.filter(pl.col("fail_reason").is_null())
    return UnitOutput(
        rows=table,
        counts=Counts(rows_in=table.height, kept=kept, out=kept, failed=failed),
        digests={"captions": rows_digest(good.select("key", "captions"))},
        totals={f"used.{name}": number for name, number in sorted(Counter(good["columns"].explode()).items())},
    )
