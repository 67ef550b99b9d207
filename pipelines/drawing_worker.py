"""Draws the rows of one unit: all of their samples in a pass, then each one decoded into the unit's archive.

Samples of all rows go into the same batches, so a table of prompts drawn once each fills them as well as one prompt
drawn eight times. A row that cannot be drawn is found before that and becomes a row with its reason.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import RunError, SampleError
from tokenmill.generate.drawing_requests import about_drawing
from tokenmill.generate.drawn_files import Drawn
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.pictures import decode_ids
from tokenmill.generate.sampling import Sampling
from tokenmill.generate.threads import steady_threads
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.records import Commit, Counts
from tokenmill.pipelines.deadlines import renew
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.drawing_prompts import AskedRow, asked_row
from tokenmill.pipelines.drawn import DRAWN_COLUMNS, STAGE
from tokenmill.pipelines.job_model import ModelPlace, close_model, opened_model
from tokenmill.pipelines.job_tables import NumberedRow, row_json
from tokenmill.pipelines.jobs import Job, JobResult, StagedArchive, UnitOutput, publish
from tokenmill.settings_generate import DrawingJob

Ids = NDArray[np.int32]


class DrawingWorker:
    """Draws, decodes and writes one unit; `cpus` is what a model on CPUs may use of them."""

    def __init__(self, job: DrawingJob, place: ModelPlace, cpus: int) -> None:
        self._settings, self._place, self._cpus = job, place, cpus
        self._sampling = Sampling(
            top_k=job.top_k, top_p=job.top_p, temperature=job.temperature, guidance=job.guidance
        )  # fmt: skip
        self._seconds: dict[str, float] = {}

    def close(self) -> None:
        close_model()

    def __call__(self, job: Job) -> JobResult:
        self._seconds = defaultdict(float)
        opened = self._opened()
        rows: Sequence[NumberedRow] = job.unit.payload["rows"]
        asked = [self._asked(number, row, opened) for number, row in rows]
        good = [one for one in asked if isinstance(one, AskedRow)]
        drawn = self._drawn(good, opened)
        commit = self._write(job, asked, drawn, opened)
        return JobResult(commits=(commit,), seconds=dict(self._seconds))

    def _opened(self) -> OpenedModel:
        started = time.perf_counter()
        opened = opened_model(self._place, self._cpus)
        factor = opened.vision.spatial_factor
        for name in ("height", "width"):
            pixels = getattr(self._settings, name)
            if pixels % factor:
                raise RunError(f"{self._place.where}.{name}: {pixels} is no multiple of {factor} pixels a code")
        self._seconds["open"] += time.perf_counter() - started
        return opened

    def _asked(self, number: int, row: Any, opened: OpenedModel) -> AskedRow | SampleError:
        try:
            return asked_row(number, row, self._settings, opened)
        except SampleError as error:
            return error

    def _drawn(self, asked: Sequence[AskedRow], opened: OpenedModel) -> Iterator[Ids]:
        """Give the documents of all samples, row by row."""
        from tokenmill.generate.sample import draw_documents

        started = time.perf_counter()
        drawings = [one.drawing(sample) for one in asked for sample in range(len(one.seeds))]
        with steady_threads(opened.model.model):
            documents = draw_documents(
                opened.model,
                drawings,
                self._sampling,
                batch_size=self._settings.batch_size,
                num_codes=opened.vision.codebook_size,
                on_batch=lambda _indexes, _ids: renew(),
            )
        self._seconds["model"] += time.perf_counter() - started
        return iter(documents)

    def _write(
        self, job: Job, asked: Sequence[AskedRow | SampleError], drawn: Iterator[Ids], opened: OpenedModel
    ) -> Commit:
        (target,) = job.targets
        table: list[dict[str, Any]] = []
        with target.folder.store.staging(target.folder.path) as path:
            with ArchiveWriter(path) as writer, steady_threads(opened.model.model):
                for (number, row), one in zip(job.unit.payload["rows"], asked, strict=True):
                    told = {"number": number, "metadata": row_json(row)}
                    if isinstance(one, SampleError):
                        table.append(_failed(number, row, one, self._settings) | told)
                        continue
                    for sample in range(len(one.seeds)):
                        table.append(self._sample(writer, one, sample, next(drawn), opened) | told)
                        renew()
            started = time.perf_counter()
            frame = pl.DataFrame(table, schema=DRAWN_COLUMNS, orient="row")
            archive = StagedArchive(path=path, bytes=writer.bytes, sha256=writer.sha256)
            commit = publish(job, target, _output(frame, asked, archive))
            self._seconds["write"] += time.perf_counter() - started
        return commit

    def _sample(
        self, writer: ArchiveWriter, asked: AskedRow, sample: int, ids: Ids, opened: OpenedModel
    ) -> dict[str, Any]:
        """Decode a document into the archive; returns its row."""
        started = time.perf_counter()
        key = f"{asked.number:06d}-{sample:03d}"
        drawn = self._file(asked, sample, ids, opened)
        extension, data = drawn.suffix[1:], drawn.data()
        self._seconds["decode"] += time.perf_counter() - started
        member = writer.add(key, {extension: data})[extension]
        return {
            "key": key,
            "prompt_key": asked.key,
            "sample": sample,
            "prompt": asked.prompt,
            "negative": asked.negative,
            "seed": asked.seeds[sample],
            "modality": "image" if asked.fps is None else "video",
            "grid": [asked.frames, asked.rows, asked.columns],
            "fps": asked.fps,
            "seconds": asked.seconds,
            "ids": ids,
            "packed": True,
            "extension": extension,
            "offset": member.offset,
            "length": member.length,
            "sha256": sha256_hex(data),
        }

    def _file(self, asked: AskedRow, sample: int, ids: Ids, opened: OpenedModel) -> Drawn:
        """Decode a document; its file says how it was drawn, but not by which release: that changes no pixel."""
        identity = opened.identity() | {"key": asked.key, "sample": str(sample)}
        about = about_drawing(asked.drawing(sample), self._sampling, identity)
        frames = np.stack(decode_ids(ids, opened.model.vocabulary, opened.vision))
        told = {name: value for name, value in about.items() if name != "tokenmill"}
        return Drawn(about=told, ids=ids, frames=frames, fps=asked.fps)


def _failed(number: int, row: Any, error: SampleError, job: DrawingJob) -> dict[str, Any]:
    """Describe a row that is not drawn."""
    prompt = row.get(job.prompt_field) if isinstance(row, Mapping) else None
    shown = prompt.encode("utf-8", "backslashreplace").decode() if isinstance(prompt, str) else None
    values = failure_values(STAGE, error)
    failure = dict(zip(("fail_stage", "fail_reason", "fail_message", "fail_transient"), values, strict=True))
    return {"key": f"{number:06d}", "prompt": shown, "packed": False, **failure}


def _output(frame: pl.DataFrame, asked: Sequence[AskedRow | SampleError], archive: StagedArchive) -> UnitOutput:
    """Count rows of the table as the input, samples as what they became."""
    failed = Counter(one.reason for one in asked if isinstance(one, SampleError))
    kept = len(asked) - failed.total()
    drawn = frame.filter(pl.col("fail_reason").is_null())
    counts = Counts(rows_in=len(asked), kept=kept, out=drawn.height, failed=dict(sorted(failed.items())))
    clips = drawn.filter(pl.col("modality") == "video").height
    totals = {
        "pictures": drawn.height - clips,
        "clips": clips,
        "codes": int(drawn["grid"].list.eval(pl.element().cast(pl.Int64).product()).list.first().sum() or 0),
        "bytes": archive.bytes,
    }
    told = [(row["key"], sha256_hex(np.array(row["ids"], "<i4").tobytes())) for row in drawn.iter_rows(named=True)]
    return UnitOutput(rows=frame, counts=counts, digests={"samples": digest_of(told)}, totals=totals, archive=archive)
