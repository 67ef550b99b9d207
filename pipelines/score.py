"""Stage score: samples → columns, one folder a scorer, one decode for all scorers that lack a unit.

Identity is per column: a folder's name covers the scorer's fingerprint (and its gate), so a scorer added later runs
alone and a changed one costs itself. A gated scorer leaves null behind its gate; the cheap scorers its gate reads are
run again beside it where they are not part of the pass, which costs less than reading their tables.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from tokenmill.errors import RecipeError, SampleError
from tokenmill.filters.rules import Gate, columns_of
from tokenmill.filters.scorer import Scorer, build_scorer
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader, failure_values
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.samples import FAILURE_COLUMNS, SampleSlice

VERSION = 1
SCHEMA = 1
_CHUNK_ROWS = 32
_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """A scorer as the recipe names it; `when` is the gate, empty for none."""

    name: str
    settings: Mapping[str, Any]
    when: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoringPass:
    """The scorers of one source, in an order in which every gate finds its columns."""

    modality: str
    specs: tuple[ScorerSpec, ...]
    scorers: Mapping[str, Scorer]
    needs: Mapping[str, tuple[str, ...]]  # scorer → all the scorers its gate hangs on

    @property
    def columns(self) -> dict[str, Any]:
        return {column: kind for spec in self.specs for column, kind in self.scorers[spec.name].columns.items()}

    def config(self, spec: ScorerSpec, limits: DecodeLimits) -> StageConfig:
        """Return the identity of one scorer's columns."""
        used = (spec.name, *self.needs[spec.name])
        return StageConfig(
            stage="score",
            version=VERSION,
            schema=SCHEMA,
            settings={
                "scorer": spec.name,
                "settings": dict(spec.settings),
                "when": {one.name: one.when for one in self.specs if one.name in used and one.when},
                **(limits.settings if self.modality != "text" else {}),
            },
            fingerprints={name: self.scorers[name].fingerprint for name in used},
        )


def scoring_pass(modality: str, specs: Sequence[ScorerSpec]) -> ScoringPass:
    """Build the scorers of a recipe's section and order them; raises RecipeError where gates go in circles."""
    scorers = {spec.name: build_scorer(spec.name, spec.settings) for spec in specs}
    owner = {column: name for name, scorer in scorers.items() for column in scorer.columns}
    columns = {column: kind for scorer in scorers.values() for column, kind in scorer.columns.items()}
    needs: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        where = f"filter.{modality}.scorers.{spec.name}.when"
        if spec.when:
            Gate.parse(spec.when, columns, where)
        names = {owner[column] for column in (columns_of(spec.when, where) if spec.when else ())}
        needs[spec.name] = tuple(sorted(names))
    ordered = _ordered(specs, needs)
    for spec in ordered:  # a gate's scorers may be gated themselves: those before them are needed too
        direct = needs[spec.name]
        needs[spec.name] = tuple(sorted({*direct, *(name for one in direct for name in needs[one])}))
    return ScoringPass(modality=modality, specs=ordered, scorers=scorers, needs=needs)


def _ordered(specs: Sequence[ScorerSpec], needs: Mapping[str, tuple[str, ...]]) -> tuple[ScorerSpec, ...]:
    ordered: list[ScorerSpec] = []
    while len(ordered) < len(specs):
        ready = {spec.name for spec in ordered}
        free = [spec for spec in specs if spec not in ordered and ready.issuperset(needs[spec.name])]
        if not free:
            raise RecipeError("filter: the `when` gates of the scorers wait for each other")
        ordered += free
    return tuple(ordered)


def score_work(
    store: Store, scoring: ScoringPass, pieces: Sequence[SampleSlice], limits: DecodeLimits, parents: Mapping[str, str]
) -> StageWork:
    """Describe the scoring of one source."""
    source, settings = pieces[0].source, pieces[0].settings
    folders = tuple(StageDir(store=store, source=source, config=scoring.config(spec, limits)) for spec in scoring.specs)
    return StageWork(
        title=f"score {source}",
        folders=folders,
        units=[Unit(inputs=(piece.reference("content"),), payload={"slice": piece}) for piece in pieces],
        make_worker=partial(ScoreWorker, source, dict(settings), scoring.modality, scoring.specs, limits),
        parents=parents,
    )


class ScoreWorker:
    """Decodes a slice once and runs the scorers that lack it."""

    def __init__(
        self,
        source: str,
        settings: Mapping[str, Any],
        modality: str,
        specs: tuple[ScorerSpec, ...],
        limits: DecodeLimits,
    ) -> None:
        self._pass = scoring_pass(modality, specs)
        self._reader = SampleReader(source, settings, limits)

    def close(self) -> None:
        self._reader.close()

    def __call__(self, job: Job) -> JobResult:
        piece: SampleSlice = job.unit.payload["slice"]
        wanted = [target.folder.config.settings["scorer"] for target in job.targets]
        used = {name for scorer in wanted for name in (scorer, *self._pass.needs[scorer])}
        rows = piece.read()
        seconds: dict[str, float] = defaultdict(float)
        errors: list[SampleError | None] = []
        columns: dict[str, list[Any]] = defaultdict(list)
        for chunk in self._chunks(piece, rows, seconds):
            errors += [sample if isinstance(sample, SampleError) else None for sample in chunk]
            for column, values in self._score(chunk, used, seconds).items():
                columns[column] += values
        started = time.perf_counter()
        outputs = [self._output(rows, errors, columns, name) for name in wanted]
        commits = [publish(job, target, output) for target, output in zip(job.targets, outputs, strict=True)]
        seconds["write"] += time.perf_counter() - started
        return JobResult(commits=tuple(commits), seconds=dict(seconds))

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

    def _score(self, chunk: list[Any], used: set[str], seconds: dict[str, float]) -> dict[str, list[Any]]:
        good = [index for index, sample in enumerate(chunk) if not isinstance(sample, SampleError)]
        columns: dict[str, list[Any]] = {}
        for spec in self._pass.specs:
            if spec.name not in used:
                continue
            started = time.perf_counter()
            scorer = self._pass.scorers[spec.name]
            indexes = self._through_gate(spec, columns, good)
            for column in scorer.columns:
                columns[column] = [None] * len(chunk)
            for begin in range(0, len(indexes), scorer.batch_size):
                some = indexes[begin : begin + scorer.batch_size]
                for column, values in scorer.score([chunk[index] for index in some]).items():
                    for index, value in zip(some, values, strict=True):
                        columns[column][index] = value
            seconds[f"model:{spec.name}"] += time.perf_counter() - started
        return columns

    def _through_gate(self, spec: ScorerSpec, columns: Mapping[str, list[Any]], good: list[int]) -> list[int]:
        if not spec.when or not good:
            return good
        known = self._pass.columns
        frame = pl.DataFrame(dict(columns), schema={name: known[name] for name in columns}, strict=False)
        passes = Gate.parse(spec.when, {name: known[name] for name in columns}).apply(frame)
        return [index for index in good if passes[index]]

    def _output(
        self, rows: pl.DataFrame, errors: Sequence[SampleError | None], columns: Mapping[str, list[Any]], name: str
    ) -> UnitOutput:
        schema = dict(self._pass.scorers[name].columns)
        failures = [failure_values("score", error) for error in errors]
        frame = pl.concat(
            [
                rows.select("key"),
                pl.DataFrame({c: columns.get(c, []) for c in schema}, schema=schema, strict=False),
                pl.DataFrame(failures, schema=FAILURE_COLUMNS, orient="row"),
            ],
            how="horizontal",
        )
        failed = Counter(error.reason for error in errors if error)
        kept = rows.height - sum(failed.values())
        counts = Counts(rows_in=rows.height, kept=kept, out=kept, failed=dict(sorted(failed.items())))
        return UnitOutput(rows=frame, counts=counts, digests={"values": rows_digest(frame)})
