"""Stage caption: the kept samples of a slice → their captions, several wordings allowed.

A sample the engine has nothing for is a failed row with the engine's reason; what the recipe does with samples without
a caption is the engine's setting, not this stage's.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import polars as pl

from tokenmill.captions.captioner import Captioner, Request, build_captioner
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Commit, Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.samples import FAILURE_COLUMNS, SampleSlice

VERSION = 1
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A slice with the record of its selection."""

    piece: SampleSlice
    folder: StageDir
    commit: Commit

    def read(self) -> pl.DataFrame:
        """Return the index rows of the kept samples, with the carried scores, in order."""
        chosen = self.folder.read_rows(self.commit).filter(pl.col("keep"))
        chosen = chosen.drop("keep", "drop_reason", "fail_reason", "duplicate_of", "rescued_by", strict=False)
        return self.piece.read().join(chosen, on="key", how="inner", maintain_order="left")

    def carried(self) -> list[str]:
        """Name the scores that travel with a kept sample into its archive."""
        return list(self.folder.config.settings["carry"])

    @property
    def kept_reference(self) -> InputRef:
        return InputRef(name="kept", digest=self.commit.digests["kept"])


def selected_slices(pieces: Sequence[SampleSlice], snapshot: Snapshot) -> list[Selected]:
    """Pair slices with their selection: the units of a selection stand in the order of the slices."""
    return [
        Selected(piece=piece, folder=snapshot.folder, commit=commit)
        for piece, commit in zip(pieces, snapshot.commits, strict=True)
    ]


def caption_work(
    store: Store, engine: str, settings: Mapping[str, Any], selected: Sequence[Selected], parents: Mapping[str, str]
) -> StageWork:
    """Describe the captioning of one source with one engine."""
    captioner = build_captioner(engine, settings)
    config = StageConfig(
        stage="caption",
        version=VERSION,
        schema=SCHEMA,
        settings={"engine": engine, "settings": dict(settings)},
        fingerprints={engine: captioner.fingerprint},
    )
    source = selected[0].piece.source
    return StageWork(
        title=f"caption {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=[
            Unit(inputs=(part.piece.reference("rows"), part.kept_reference), payload={"part": part})
            for part in selected
        ],
        make_worker=partial(CaptionWorker, engine, dict(settings)),
        parents=parents,
    )


class CaptionWorker:
    """Asks the engine for a slice's kept samples."""

    def __init__(self, engine: str, settings: Mapping[str, Any]) -> None:
        self._captioner: Captioner = build_captioner(engine, settings)

    def close(self) -> None:
        self._captioner.close()

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        rows = job.unit.payload["part"].read()
        requests = (Request(index=n, sample=_sample(row)) for n, row in enumerate(rows.iter_rows(named=True)))
        answers = sorted(chain.from_iterable(self._captioner.answers(requests)), key=lambda answer: answer.index)
        asked_s = time.perf_counter() - started
        errors = [answer.error for answer in answers]
        captions = [None if answer.error else [_storable(text) for text in answer.texts] for answer in answers]
        frame = pl.concat(
            [
                rows.select("key"),
                pl.DataFrame({"captions": captions}, schema={"captions": pl.List(pl.String)}),
                pl.DataFrame(
                    [failure_values("caption", error) for error in errors], schema=FAILURE_COLUMNS, orient="row"
                ),
            ],
            how="horizontal",
        )
        failed = Counter(error.reason for error in errors if error)
        kept = rows.height - sum(failed.values())
        counts = Counts(rows_in=rows.height, kept=kept, out=kept, failed=dict(sorted(failed.items())))
        answered = frame.filter(pl.col("fail_reason").is_null()).select("key", "captions")
        output = UnitOutput(rows=frame, counts=counts, digests={"captions": rows_digest(answered)})
        (target,) = job.targets
        commit = publish(job, target, output)
        return JobResult(commits=(commit,), seconds={"ask": asked_s, "write": time.perf_counter() - started - asked_s})


def _storable(text: str) -> str:
    """Replace lone surrogates, which JSON metadata lets through and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": row["key"], "caption": row["caption"], "metadata": json.loads(row["metadata"])}
