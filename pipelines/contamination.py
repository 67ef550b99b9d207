"""Stage decontaminate: which samples of a slice are copies of evaluation samples. It exists only where sets are named.

A pure function of a slice's scores and the sets, so a new shard costs its own unit. The rules are not asked and nothing
is a copy of what is dropped here, so a new threshold runs nothing of it, and a new set only this and the slices that
lose or win a sample by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import polars as pl

from tokenmill.errors import RunError, SampleError
from tokenmill.filters.contamination import Found, WordSequences, equal
from tokenmill.filters.stars import NOBODY
from tokenmill.manifests.identity import digest_of, rows_digest
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.compare_read import PHASH, matrix
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.evaluation_sets import EvaluationSet, columns_of_sets, criteria, scorers_of_sets
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.scored import CONTAMINATED, Excluded, Scored
from tokenmill.pipelines.scoring_pass import ScoringPass

VERSION = 1
SCHEMA = 1


def decontaminate_work(
    store: Store,
    source: str,
    scored: Sequence[Scored],
    sets: Sequence[EvaluationSet],
    scoring: ScoringPass,
    limits: DecodeLimits,
) -> StageWork:
    """Describe the search for copies of evaluation samples in one source; only the scores that are compared count."""
    asked = [one.asked for one in sets]
    config = StageConfig(
        stage="decontaminate", version=VERSION, schema=SCHEMA, settings={"sets": [criteria(one) for one in asked]}
    )
    used = scorers_of_sets(asked, scoring)
    samples = InputRef(name="evaluation", digest=digest_of([one.digest for one in sets]))
    units = []
    for part in scored:
        values = [
            InputRef(name=folder.config.settings["scorer"], digest=commit.digests["values"])
            for folder, commit in part.scores
            if folder.config.settings["scorer"] in used
        ]
        units.append(Unit(inputs=(part.piece.reference("content"), *values, samples), payload={"part": part}))
    return StageWork(
        title=f"decontaminate {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=units,
        make_worker=partial(DecontaminateWorker, tuple(sets), limits),
        parents={f"evaluation/{one.asked.name}/{number}": snapshot.digest for one in sets
                 for number, snapshot in enumerate(one.snapshots)},
    )  # fmt: skip


def with_contaminated(scored: Sequence[Scored], found: Snapshot | None) -> list[Scored]:
    """Tell every slice which of its samples are copies of evaluation samples; slices without one stay as they are."""
    if found is None:
        return list(scored)
    return [
        replace(part, contaminated=Excluded(folder=found.folder, commit=commit, reason=CONTAMINATED))
        if commit.counts.dropped
        else part
        for part, commit in zip(scored, found.commits, strict=True)
    ]


class DecontaminateWorker:
    """Compares one slice after the other with the evaluation sets, which it holds in memory."""

    def __init__(self, sets: tuple[EvaluationSet, ...], limits: DecodeLimits) -> None:
        self._sets, self._limits = sets, limits
        self._readers: dict[str, SampleReader] = {}

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    @cached_property
    def _known(self) -> list[_Known]:
        return [_known(one, self._texts) for one in self._sets]

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        part: Scored = job.unit.payload["part"]
        table = _compared(part, columns_of_sets([one.asked for one in self._sets]))
        copies: list[str | None] = [None] * table.height
        texts = [text or "" for text in self._texts(part)] if any(one.asked.ngram for one in self._sets) else []
        for known in self._known:
            for row, of in known.copies(table, texts):
                copies[row] = copies[row] or of
        rows = table.select("key", pl.Series("duplicate_of", copies, pl.String))
        reason = pl.when(pl.col("duplicate_of").is_not_null()).then(pl.lit(CONTAMINATED)).alias("drop_reason")
        rows = rows.select("key", reason, "duplicate_of")
        excluded = rows.filter(pl.col("drop_reason").is_not_null()).select("key", "duplicate_of")
        kept = rows.height - excluded.height
        dropped = {CONTAMINATED: excluded.height} if excluded.height else {}
        counts = Counts(rows_in=rows.height, kept=kept, out=kept, dropped=dropped)
        (target,) = job.targets
        output = UnitOutput(rows=rows, counts=counts, digests={"excluded": rows_digest(excluded)})
        return JobResult(commits=(publish(job, target, output),), seconds={"match": time.perf_counter() - started})

    def _texts(self, part: Scored) -> list[str | None]:
        """Return the texts of a slice, in order; None where one cannot be read any more."""
        piece = part.piece
        if piece.source not in self._readers:
            self._readers[piece.source] = SampleReader(piece.source, piece.settings, self._limits)
        found = self._readers[piece.source].texts(piece, piece.read())
        return [None if isinstance(text, SampleError) else text for text in found]


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An evaluation set in memory: its samples' names and what they are compared by."""

    asked: Any
    names: pl.Series
    table: pl.DataFrame
    sequences: WordSequences | None

    def copies(self, table: pl.DataFrame, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield (row, name of the evaluation sample) of every copy; the most certain kind first."""
        for found in self._kinds(table, texts):
            for row in np.flatnonzero(found != NOBODY).tolist():
                yield row, self.names[int(found[row])]

    def _kinds(self, table: pl.DataFrame, texts: Sequence[str]) -> Iterator[Found]:
        # Compiled engines: only workers pay for their import.
        from tokenmill.filters.near_references import hash_references, text_references, vector_references

        asked = self.asked
        if asked.exact:
            yield equal(table["sha256"], self.table["sha256"])
        if asked.max_distance is not None:
            yield self._near(partial(hash_references, max_distance=asked.max_distance), table, PHASH)
        if asked.min_cosine is not None:
            yield self._near(partial(vector_references, min_cosine=asked.min_cosine), table, asked.cosine_column)
        if asked.min_jaccard is not None:
            yield self._near(partial(text_references, min_jaccard=asked.min_jaccard), table, asked.jaccard_column)
        if self.sequences is not None:
            yield self.sequences.find(texts)

    def _near(self, compare: Callable[[Any, Any], Found], table: pl.DataFrame, column: str) -> Found:
        """Compare the samples that have a value with the evaluation samples that have one."""
        some, there = _array(table[column], "a slice to decontaminate")
        known, known_there = _array(self.table[column], f"evaluation set {self.asked.name}")
        found = np.full(table.height, NOBODY)
        if len(some) and len(known):
            found[there] = np.append(np.flatnonzero(known_there), NOBODY)[compare(some, known)]
        return found


def _known(one: EvaluationSet, read: Any) -> _Known:
    columns = columns_of_sets([one.asked])
    table = pl.concat([_compared(part, columns) for part in one.scored])
    names = table.select(pl.concat_str(pl.lit(f"{one.asked.name}/"), "key")).to_series()
    sequences = None
    if one.asked.ngram is not None:
        texts = [text for part in one.scored for text in _all_there(one, read(part))]
        sequences = WordSequences(texts, one.asked.ngram)
    return _Known(asked=one.asked, names=names, table=table, sequences=sequences)


def _all_there(one: EvaluationSet, texts: Sequence[str | None]) -> list[str]:
    """Refuse to search for copies of what cannot be read: nothing would be found of it."""
    if None in texts:
        raise RunError(f"evaluation set {one.asked.name}: a text is not what was indexed any more; run ingest again")
    return [text for text in texts if text is not None]


def _compared(part: Scored, columns: frozenset[str]) -> pl.DataFrame:
    """Return key, sha256 and some score columns of every sample of a slice."""
    return part.verdict_table(columns).hstack([part.piece.read(["sha256"])["sha256"]])


def _array(values: pl.Series, where: str) -> tuple[Any, Any]:
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        return matrix(values, where)
    there = values.is_not_null().to_numpy()
    return values.drop_nulls().to_numpy(), there
