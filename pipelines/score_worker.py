"""The worker of stage score: decode, cheap scorers and resizing first, then the models, then one table a scorer.

In one process these are three calls in a row; as two operators they run where CPUs and where devices are. Chunks have
at most 32 samples, so batches, and with them every value, are the same either way.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.filters.rules import Gate
from tokenmill.filters.scorer import Columns, PreparedScorer, Scorer
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.decoding import SampleReader, failure_values
from tokenmill.pipelines.jobs import Job, JobResult, UnitOutput, publish
from tokenmill.pipelines.samples import FAILURE_COLUMNS, SampleSlice
from tokenmill.pipelines.scoring_pass import ScorerSpec, ScoringPass

_CHUNK_ROWS = 32
_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some decoded samples on their way to the models: what is known of them, and what the models need to see.

    `seen` maps a scorer to the samples it may score, by their place in the chunk, and what it takes of them: resized
    pixels, or for a scorer that cannot resize beforehand and hangs on one that does, the whole sample.
    """

    keys: list[str]
    errors: list[SampleError | None]
    columns: dict[str, list[Any]]
    seen: dict[str, dict[int, Any]]
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A chunk after the models: columns alone."""

    keys: list[str]
    errors: list[SampleError | None]
    columns: dict[str, list[Any]]
    seconds: dict[str, float]


class ScoreWorker:
    """Decodes a slice once and runs the scorers that lack it; a `HalvedWorker`."""

    def __init__(self, scoring: ScoringPass, open_reader: Callable[[], SampleReader]) -> None:
        self._pass, self._open_reader = scoring, open_reader

    @cached_property
    def _reader(self) -> SampleReader:
        return self._open_reader()  # only the half that decodes needs one

    def close(self) -> None:
        if "_reader" in self.__dict__:
            self._reader.close()

    def __call__(self, job: Job) -> JobResult:
        return self.complete(job, [self.compute(chunk) for chunk in self.prepare(job)])

    def prepare(self, job: Job) -> Iterator[Chunk]:
        """Decode a unit and run the scorers that need no model, chunk by chunk."""
        piece: SampleSlice = job.unit.payload["slice"]
        used = {name for scorer in self._wanted(job) for name in (scorer, *self._pass.needs[scorer])}
        rows = piece.read()
        seconds: dict[str, float] = defaultdict(float)
        first = 0
        for samples in self._chunks(piece, rows, seconds):
            keys = rows["key"].slice(first, len(samples)).to_list()
            first += len(samples)
            yield self._prepared(keys, samples, used, seconds)
            seconds = defaultdict(float)

    def compute(self, chunk: Chunk) -> Part:
        """Run the models over what `prepare` left for them."""
        seconds, columns = defaultdict(float, chunk.seconds), dict(chunk.columns)
        for spec in self._pass.specs:
            if spec.name in chunk.seen:
                seen = chunk.seen[spec.name]
                scorer = self._pass.scorers[spec.name]
                score = scorer.score_prepared if isinstance(scorer, PreparedScorer) else scorer.score
                self._score(spec, score, seen, columns, len(chunk.keys), seconds)
        return Part(keys=chunk.keys, errors=chunk.errors, columns=columns, seconds=dict(seconds))

    def complete(self, job: Job, parts: Sequence[Part]) -> JobResult:
        """Write the columns of all parts, one table and record a scorer."""
        started = time.perf_counter()
        keys = [key for part in parts for key in part.keys]
        errors = [error for part in parts for error in part.errors]
        columns = {
            name: [v for part in parts for v in part.columns[name]] for name in (parts[0].columns if parts else ())
        }
        outputs = [self._output(keys, errors, columns, name) for name in self._wanted(job)]
        commits = [publish(job, target, output) for target, output in zip(job.targets, outputs, strict=True)]
        seconds: Counter[str] = Counter()
        for part in parts:
            seconds.update(part.seconds)
        seconds["write"] += time.perf_counter() - started  # type: ignore[assignment]
        return JobResult(commits=tuple(commits), seconds=dict(seconds))

    def _wanted(self, job: Job) -> list[str]:
        return [target.folder.config.settings["scorer"] for target in job.targets]

    def _samples(self, piece: SampleSlice, rows: pl.DataFrame) -> Iterable[Any]:
        if self._pass.modality == "text":
            return self._reader.texts(piece, rows)
        if self._pass.modality == "video":
            return self._reader.clips(rows, self._reader.middle_frame)
        return self._reader.images(piece, rows)

    def _chunks(self, piece: SampleSlice, rows: pl.DataFrame, seconds: dict[str, float]) -> Iterator[list[Any]]:
        """Yield decoded samples some at a time: bounded memory, and borders that depend on the unit alone."""
        chunk: list[Any] = []
        size, mark = 0, time.perf_counter()
        for sample in self._samples(piece, rows):
            chunk.append(sample)
            size += getattr(sample, "nbytes", 0)
            if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
                seconds["decode"] += time.perf_counter() - mark
                yield chunk
                chunk, size, mark = [], 0, time.perf_counter()
        seconds["decode"] += time.perf_counter() - mark
        if chunk:
            yield chunk

    def _prepared(self, keys: list[str], samples: list[Any], used: set[str], seconds: dict[str, float]) -> Chunk:
        errors = [sample if isinstance(sample, SampleError) else None for sample in samples]
        good = {index: samples[index] for index, error in enumerate(errors) if error is None}
        columns: dict[str, list[Any]] = {}
        seen: dict[str, dict[int, Any]] = {}
        for spec in self._pass.specs:
            if spec.name not in used:
                continue
            scorer = self._pass.scorers[spec.name]
            if isinstance(scorer, PreparedScorer) or spec.name in self._pass.late:
                seen[spec.name] = self._small(spec, scorer, good, columns, seconds)
            else:
                self._score(spec, scorer.score, good, columns, len(samples), seconds)
        return Chunk(keys=keys, errors=errors, columns=columns, seen=seen, seconds=dict(seconds))

    def _small(
        self, spec: ScorerSpec, scorer: Scorer, good: Mapping[int, Any], columns: dict[str, list[Any]],
        seconds: dict[str, float],
    ) -> dict[int, Any]:  # fmt: skip
        """Return what a scorer has to see, leaving out what its gate keeps back if that is known by now."""
        known = spec.name not in self._pass.late
        indexes = self._through_gate(spec, columns, list(good)) if known else list(good)
        if not isinstance(scorer, PreparedScorer):
            return {index: good[index] for index in indexes}
        started = time.perf_counter()
        small = scorer.prepare([good[index] for index in indexes])
        seconds["resize"] += time.perf_counter() - started
        return dict(zip(indexes, small, strict=True))

    def _score(
        self, spec: ScorerSpec, score: Callable[[list[Any]], Columns], seen: Mapping[int, Any],
        columns: dict[str, list[Any]], num_samples: int, seconds: dict[str, float],
    ) -> None:  # fmt: skip
        """Add a scorer's columns: null where a sample failed or stays behind the gate."""
        started = time.perf_counter()
        scorer = self._pass.scorers[spec.name]
        indexes = self._through_gate(spec, columns, list(seen))
        for column in scorer.columns:
            columns[column] = [None] * num_samples
        for begin in range(0, len(indexes), scorer.batch_size):
            some = indexes[begin : begin + scorer.batch_size]
            for column, values in score([seen[index] for index in some]).items():
                for index, value in zip(some, values, strict=True):
                    columns[column][index] = value
        kind = "model" if isinstance(scorer, PreparedScorer) else "score"  # two pools: who does it
        seconds[f"{kind}:{spec.name}"] += time.perf_counter() - started

    def _through_gate(self, spec: ScorerSpec, columns: Mapping[str, list[Any]], good: list[int]) -> list[int]:
        if not spec.when or not good:
            return good
        known = self._pass.columns
        frame = pl.DataFrame(dict(columns), schema={name: known[name] for name in columns}, strict=False)
        passes = Gate.parse(spec.when, {name: known[name] for name in columns}).apply(frame)
        return [index for index in good if passes[index]]

    def _output(
        self, keys: Sequence[str], errors: Sequence[SampleError | None], columns: Mapping[str, list[Any]], name: str
    ) -> UnitOutput:
        schema = dict(self._pass.scorers[name].columns)
        failures = [failure_values("score", error) for error in errors]
        frame = pl.concat(
            [
                pl.DataFrame({"key": keys}, schema={"key": pl.String}),
                pl.DataFrame({c: columns.get(c, []) for c in schema}, schema=schema, strict=False),
                pl.DataFrame(failures, schema=FAILURE_COLUMNS, orient="row"),
            ],
            how="horizontal",
        )
        failed = Counter(error.reason for error in errors if error)
        kept = len(keys) - sum(failed.values())
        counts = Counts(rows_in=len(keys), kept=kept, out=kept, failed=dict(sorted(failed.items())))
        return UnitOutput(rows=frame, counts=counts, digests={"values": rows_digest(frame)})
