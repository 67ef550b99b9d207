"""The worker of stage score: decode, cheap scorers and resizing first, then the models, then one table a scorer.

A picture is opened once. The scorers without a gate look at it in the thread that decodes it, and its pixels are let go
before the next one comes, so a unit's memory does not hang on how large its pictures are; gated scorers decode what
they need of the few that come through. In one process `prepare`, `compute` and `complete` are three calls in a row; as
two operators they run where CPUs and where devices are. Batches lie within a chunk, and a chunk is so many samples of
the unit, so every value is the same either way.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any, cast

import polars as pl

from tokenmill.errors import RunError, SampleError
from tokenmill.filters.footage import Footage, unseen_picture
from tokenmill.filters.picture import Picture
from tokenmill.filters.rules import Gate
from tokenmill.filters.scorer import Columns, PreparedScorer, Scorer, is_prepared, reads_caption_alone
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.decoding import SampleReader, failure_values
from tokenmill.pipelines.jobs import Job, JobResult, UnitOutput, publish
from tokenmill.pipelines.samples import FAILURE_COLUMNS, SampleSlice
from tokenmill.pipelines.score_chunk import (
    Chunk,
    Look,
    Looked,
    Part,
    Sheet,
    add_seconds,
    chunk_sizes,
    held_bytes,
)
from tokenmill.pipelines.scoring_pass import ScorerSpec, ScoringPass

_CHUNK_ROWS = {"image": 64, "video": 64, "text": 256, "document": 64}  # a batch is never larger
# Frames of clips may travel (RAFT sees all of them): with the clip that ends a chunk, 14 MB for 20 s, some 64 MB.
_CHUNK_BYTES = {"image": 128 * 2**20, "video": 48 * 2**20, "text": 128 * 2**20, "document": 128 * 2**20}


class ScoreWorker:
    """Decodes a slice once and runs the scorers that lack it; a `HalvedWorker`."""

    def __init__(
        self,
        scoring: ScoringPass,
        open_reader: Callable[[], SampleReader],
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self._pass, self._open_reader = scoring, open_reader
        self._unchecked = dict(fingerprints or {})

    def _check(self, name: str) -> None:
        """Compare a scorer that reads files with what the run was planned with, once; raises RunError.

        Only where it is about to score: a machine that decodes needs no weights.
        """
        expected, scorer = self._unchecked.pop(name, None), self._pass.scorers[name]
        if expected is not None and hasattr(scorer, "places") and scorer.fingerprint != expected:
            raise RunError(f"scorer {name!r}: its files on this machine are not those the run was planned with")

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
        specs = [spec for spec in self._pass.specs if spec.name in used]
        for spec in specs:
            if not is_prepared(self._pass.scorers[spec.name]):
                self._check(spec.name)
        rows = piece.read()
        with closing(self._samples(piece, rows, specs)) as samples:  # whatever happens: threads read ahead for it
            yield from self._chunks(rows, samples, specs)
            next(samples, None)  # to its end

    def _chunks(
        self, rows: pl.DataFrame, samples: Iterator[Looked | str | SampleError], specs: Sequence[ScorerSpec]
    ) -> Iterator[Chunk]:
        held = held_bytes(rows, self._pass.sampling)
        modality = self._pass.modality
        for size in chunk_sizes(held, _CHUNK_ROWS[modality], _CHUNK_BYTES[modality]):
            keys, rows, read_s = rows["key"].head(size).to_list(), rows.slice(size), self._reader.read_s
            chunk = self._prepared(keys, list(islice(samples, size)), specs)
            add_seconds(chunk.sheet.seconds, "read", self._reader.read_s - read_s)
            yield chunk

    def compute(self, chunk: Chunk) -> Part:
        """Run the models over what `prepare` left for them."""
        for spec in self._pass.specs:
            if spec.name in chunk.seen:
                self._check(spec.name)
                scorer = self._pass.called[spec.name]
                if is_prepared(scorer):
                    self._in_batches(spec, scorer.score_prepared, chunk.seen[spec.name], chunk.sheet, "model")
                else:
                    self._score(spec, chunk.seen[spec.name], chunk.sheet)
        return chunk.sheet

    def complete(self, job: Job, parts: Sequence[Part]) -> JobResult:
        """Write the columns of all parts, one table and record a scorer."""
        started = time.perf_counter()
        commits = []
        for target, name in zip(job.targets, self._wanted(job), strict=True):
            commits.append(publish(job, target, self._output(parts, name)))
        seconds: Counter[str] = Counter()
        for part in parts:
            seconds.update(part.seconds)
        seconds["write"] += time.perf_counter() - started  # type: ignore[assignment]
        return JobResult(commits=tuple(commits), seconds=dict(seconds))

    def _wanted(self, job: Job) -> list[str]:
        return [target.folder.config.settings["scorer"] for target in job.targets]

    def _samples(
        self, piece: SampleSlice, rows: pl.DataFrame, specs: Sequence[ScorerSpec]
    ) -> Generator[Looked | str | SampleError]:
        if self._pass.modality == "text":
            return self._reader.texts(piece, rows)
        looking = [spec for spec in specs if not reads_caption_alone(self._pass.scorers[spec.name])]
        sampling = self._pass.sampling
        if not looking:
            look = Look(())
            return (look(sample) for sample in _unseen(rows, as_footage=sampling is not None))
        at_once = [spec for spec in specs if self._at_once(spec)]
        scorers = [self._pass.called[spec.name] for spec in at_once]
        if self._pass.modality == "image":
            return self._reader.pictures(piece, rows, Look(scorers))
        gates = {spec.name: self._gate(spec) for spec in at_once if spec.when and spec.name not in self._pass.late}
        look = Look(scorers, gates=gates, forget=all(map(self._at_once, looking)))
        if sampling is None:
            return self._reader.pages(piece, rows, look)
        return self._reader.footage(rows, sampling, look)

    def _at_once(self, spec: ScorerSpec) -> bool:
        """Tell whether a scorer looks at every picture, or clip, in the thread that decodes it."""
        scorer, is_late = self._pass.called[spec.name], spec.name in self._pass.late
        if not is_prepared(scorer) and (is_late or scorer.batch_size > 1):
            return False
        return not spec.when or is_late or self._is_decided_at_once(spec)

    def _is_decided_at_once(self, spec: ScorerSpec) -> bool:
        """Tell whether a gate of clips is known as soon as one is decoded: its frames need not wait for others then.

        Of a picture more can be decoded later, so its gates are asked for a whole chunk, which is cheaper. Documents
        are like clips: their pictures would all be decoded again.
        """
        return self._pass.modality in ("video", "document") and all(
            self._at_once(needed) for needed in self._pass.specs if needed.name in self._pass.needs[spec.name]
        )

    def _gate(self, spec: ScorerSpec) -> Callable[[Looked], bool]:
        needed = {name: self._pass.scorers[name].columns for name in self._pass.needs[spec.name]}
        known = {column: kind for columns in needed.values() for column, kind in columns.items()}
        gate = Gate.parse(spec.when, known)

        def is_open(looked: Looked) -> bool:
            said = {column: list(looked.values.get(name, {}).get(column, ()))[:1] or [None]
                    for name, columns in needed.items() for column in columns}  # fmt: skip
            return bool(gate.apply(pl.DataFrame(said, schema=known, strict=False)).item())

        return is_open

    def _prepared(
        self, keys: list[str], samples: Sequence[Looked | str | SampleError], specs: Sequence[ScorerSpec]
    ) -> Chunk:
        errors = [sample if isinstance(sample, SampleError) else None for sample in samples]
        sheet = Sheet(keys=keys, errors=errors)
        good = {place: sample for place, sample in enumerate(samples) if not isinstance(sample, SampleError)}
        seen: dict[str, dict[int, Any]] = {}
        for looked in good.values():
            for what, seconds in looked.seconds.items() if isinstance(looked, Looked) else ():
                add_seconds(sheet.seconds, what, seconds)
        whole = {place: one.picture if isinstance(one, Looked) else one for place, one in good.items()}
        for spec in specs:
            scorer = self._pass.called[spec.name]
            sheet.begin(scorer)
            if self._pass.modality != "text" and self._at_once(spec):
                small = _gathered(scorer, cast(Mapping[int, Looked], good), sheet)
                if is_prepared(scorer):
                    seen[spec.name] = small
            elif is_prepared(scorer):
                seen[spec.name] = self._small(spec, scorer, whole, sheet)
            elif spec.name in self._pass.late:
                seen[spec.name] = whole
            else:
                self._score(spec, whole, sheet)
        return Chunk(sheet=sheet, seen=seen)

    def _small(
        self, spec: ScorerSpec, scorer: PreparedScorer, samples: Mapping[int, Any], sheet: Sheet
    ) -> dict[int, Any]:
        """Return what a scorer's model has to see of the samples that come through its gate."""
        places = list(samples) if spec.name in self._pass.late else self._through_gate(spec, sheet, list(samples))
        if self._pass.modality != "text":
            return self._looked_at(scorer, {place: samples[place] for place in places}, sheet)
        mark = time.perf_counter()
        small = scorer.prepare([samples[place] for place in places])
        add_seconds(sheet.seconds, "resize", time.perf_counter() - mark)
        return dict(zip(places, small, strict=True))

    def _score(self, spec: ScorerSpec, samples: Mapping[int, Any], sheet: Sheet) -> None:
        """Run a scorer without a model over whole samples: pictures in threads, or in the batches it asks for."""
        scorer = self._pass.called[spec.name]
        through = {place: samples[place] for place in self._through_gate(spec, sheet, list(samples))}
        if self._pass.modality == "text":
            self._in_batches(spec, scorer.score, through, sheet, "score")
        elif scorer.batch_size == 1:
            self._looked_at(scorer, through, sheet)
        else:
            for some in _batches(list(through), scorer.batch_size):
                self._looked_at(scorer, {place: through[place] for place in some}, sheet, release=False)
                faults = sheet.faults.get(spec.name, {})
                decoded = {place: through[place] for place in some if place not in faults}
                self._in_batches(spec, scorer.score, decoded, sheet, "score")
                for picture in decoded.values():
                    picture.release()

    def _looked_at(
        self, scorer: Scorer, pictures: Mapping[int, Any], sheet: Sheet, *, release: bool = True
    ) -> dict[int, Any]:
        """Let one scorer look at some pictures in the decoding threads; return what its model is to see of them."""
        looked = list(self._reader.ahead(Look([scorer], release=release), pictures.values()))
        for one in looked:
            for what, seconds in one.seconds.items():
                add_seconds(sheet.seconds, what, seconds)
        return _gathered(scorer, dict(zip(pictures, looked, strict=True)), sheet)

    def _in_batches(
        self, spec: ScorerSpec, score: Callable[[list[Any]], Columns], seen: Mapping[int, Any], sheet: Sheet, kind: str
    ) -> None:
        """Add what a scorer says of the samples that come through its gate; the phase's name tells which pool it is."""
        started = time.perf_counter()
        for some in _batches(self._through_gate(spec, sheet, list(seen)), self._pass.called[spec.name].batch_size):
            sheet.put(self._pass.called[spec.name], some, score([seen[place] for place in some]))
        add_seconds(sheet.seconds, f"{kind}:{spec.name}", time.perf_counter() - started)

    def _through_gate(self, spec: ScorerSpec, sheet: Sheet, places: list[int]) -> list[int]:
        if not spec.when or not places:
            return places
        known = {name: self._pass.columns[name] for name in sheet.columns}
        frame = pl.DataFrame(sheet.columns, schema=known, strict=False)
        passes = Gate.parse(spec.when, known).apply(frame)
        return [place for place in places if passes[place]]

    def _output(self, parts: Sequence[Part], name: str) -> UnitOutput:
        offered = self._pass.scorers[name].columns
        columns: dict[str, list[Any]] = {column: [v for p in parts for v in p.columns[column]] for column in offered}
        errors = [
            error or part.faults.get(name, {}).get(place) for part in parts for place, error in enumerate(part.errors)
        ]
        failures = [failure_values("score", error) for error in errors]
        frame = pl.concat(
            [
                pl.DataFrame({"key": [key for part in parts for key in part.keys]}, schema={"key": pl.String}),
                _typed(self._pass.scorers[name], columns),
                pl.DataFrame(failures, schema=FAILURE_COLUMNS, orient="row"),
            ],
            how="horizontal",
        )
        failed = Counter(error.reason for error in errors if error)
        kept = len(errors) - sum(failed.values())
        counts = Counts(rows_in=len(errors), kept=kept, out=kept, failed=dict(sorted(failed.items())))
        return UnitOutput(rows=frame, counts=counts, digests={"values": rows_digest(frame)})


def _unseen(rows: pl.DataFrame, *, as_footage: bool) -> Iterator[Picture | Footage]:
    """Yield samples of which no bytes are read: captions and digests as indexed."""
    for sha256, caption in rows.select("sha256", "caption").iter_rows():
        if as_footage:
            yield Footage(None, sha256=sha256, caption=caption)
        else:
            yield unseen_picture(sha256, caption)


def _gathered(scorer: Scorer, looked: Mapping[int, Looked], sheet: Sheet) -> dict[int, Any]:
    """Put a scorer's values and faults into the sheet; return what its model is to see, by place."""
    small: dict[int, Any] = {}
    name = scorer.name
    for place, one in looked.items():
        if name in one.faults:
            sheet.faults.setdefault(name, {})[place] = one.faults[name]
        elif name in one.values:
            sheet.put(scorer, [place], one.values[name])
        elif name in one.small:
            small[place] = one.small[name]
    return small


def _typed(scorer: Scorer, columns: Mapping[str, list[Any]]) -> pl.DataFrame:
    """Make a table of a scorer's values; raises RunError for one that is none of its column's type."""
    frame = pl.DataFrame(dict(columns), schema=dict(scorer.columns), strict=False)
    for column, values in columns.items():
        if frame[column].null_count() != values.count(None):
            wrong = next(v for v, held in zip(values, frame[column], strict=True) if held is None and v is not None)
            raise RunError(f"scorer {scorer.name!r}: {str(wrong)[:80]!r} is no {frame.schema[column]} for {column!r}")
    return frame


def _batches(places: list[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(places), size):
        yield places[begin : begin + size]
