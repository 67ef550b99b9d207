"""What the report reads: counts of all records, and whole tables of some units.

Counts come from the commit records, so they are complete at any size. Rows (for histograms, pictures, examples) come
from at most 100,000 samples a source, in units spread evenly over it, and the first unit of every reason: a report of a
billion samples takes as long as one of a million.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import polars as pl

from tokenmill.errors import TokenmillError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.records import Commit, Counts
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.takedowns import REASON
from tokenmill.pipelines.samples import SampleSlice

log = logging.getLogger(__name__)

STAGES = ("ingest", "split", "score", "duplicates", "select", "choose", "tokenize", "plan")
_CHAIN_NAMES = {"plan": "plans"}  # a plan a phase
_ROWS_A_SOURCE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCounts:
    """One line of a source's funnel."""

    stage: str
    counts: Counts
    units: int
    totals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The stages of a chain that are complete; one that is not ends the list, and `missing` says why."""

    chain: Any
    missing: dict[str, str] = field(default_factory=dict)

    @cached_property
    def stages(self) -> dict[str, Any]:
        """Map every complete stage to what the chain gives for it, in order."""
        found: dict[str, Any] = {}
        for stage in STAGES:
            try:
                found[stage] = getattr(self.chain, _CHAIN_NAMES.get(stage, stage))
            except TokenmillError as error:
                log.info("the report ends before %s: %s", stage, error)
                self.missing[stage] = str(error)
                break
        return found

    @property
    def plans(self) -> dict[str, Plan]:
        """The plan of every phase; nothing where they are not all there."""
        return dict(self.stages.get("plan", {}))

    @property
    def plan(self) -> Plan | None:
        """The plan that is trained on."""
        return self.plans.get(self.chain.recipe.train.last.phase)

    def snapshots(self, stage: str) -> dict[str, tuple[Snapshot, ...]]:
        """Return the snapshots of a stage by source; nothing where it is not complete. Not for `plan`."""
        return {
            source: snapshots if isinstance(snapshots, tuple) else (snapshots,)
            for source, snapshots in self.stages.get(stage, {}).items()
        }

    @cached_property
    def sources(self) -> list[str]:
        return list(self.chain.recipe.sources)

    def modality(self, source: str) -> str:
        """Return a source's modality; one that was tokenized elsewhere may have several."""
        return str(self.chain.modality.get(source, "tokens"))

    def funnel(self, source: str) -> list[StageCounts]:
        """Return a source's stages with what became of its rows, in order; scorers of one pass count once."""
        lines: list[StageCounts] = []
        for stage in ("ingest", "split", "score", "select", "choose", "tokenize"):
            lines += [
                StageCounts(stage=stage, counts=snapshot.counts, units=len(snapshot.commits), totals=snapshot.totals)
                for snapshot in self.snapshots(stage).get(source, ())[:1]
            ]
        return lines

    @cached_property
    def tables(self) -> dict[str, SourceTable]:
        """The rows of every source that was selected from, with scores and verdicts."""
        if "select" not in self.stages:
            return {}
        return {source: _source_table(self, source) for source in self.sources if self.chain.pieces[source]}

    def first_failures(self, source: str) -> Iterator[tuple[str, str, int, pl.DataFrame]]:
        """Yield (stage, reason, how many, some rows with key and message) for all that failed somewhere."""
        for stage in ("ingest", "split", "score", "choose", "tokenize"):
            snapshots = self.snapshots(stage).get(source, ())
            for snapshot in snapshots[:1]:
                for reason, number in snapshot.counts.failed.items():
                    yield stage, reason, number, _examples(snapshot, reason)


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """Rows of some units of a source: index, scores, `keep`, `drop_reason`, `duplicate_of`, and `unit` (of pieces)."""

    source: str
    modality: str
    pieces: Sequence[SampleSlice]
    rows: pl.DataFrame
    num_samples: int
    num_kept: int
    drop_counts: Mapping[str, int]

    @property
    def is_whole(self) -> bool:
        return self.rows.height == self.num_samples

    def some(self, condition: pl.Expr, number: int) -> pl.DataFrame:
        """Return at most `number` rows that fulfil a condition: a random choice that depends on the keys alone."""
        found = self._showable.filter(condition)
        places = pl.Series([sha256(key.encode("utf-8", "surrogatepass")).digest() for key in found["key"]])
        return found.with_columns(places.alias("place")).sort("place").head(number).drop("place")

    def find(self, key: str) -> pl.DataFrame:
        return self._showable.filter(pl.col("key") == key).head(1)

    @property
    def _showable(self) -> pl.DataFrame:
        """The rows a page may show: never a picture that was taken down."""
        return self.rows.filter(pl.col("drop_reason").ne_missing(pl.lit(REASON)))


def _source_table(run: Run, source: str) -> SourceTable:
    chain = run.chain
    scored, select = chain.scored[source], chain.select[source]
    rows = [_unit_rows(scored[number], select, number) for number in _chosen(select)]
    return SourceTable(
        source=source,
        modality=run.modality(source),
        pieces=chain.pieces[source],
        rows=pl.concat(rows, how="diagonal_relaxed"),
        num_samples=select.counts.rows_in,
        num_kept=select.counts.kept,
        drop_counts=select.counts.dropped,
    )


def _chosen(select: Snapshot) -> list[int]:
    """Choose units: evenly over the source up to the limit of rows, and the first one of every reason."""
    commits = select.commits
    mean_rows = max(select.counts.rows_in / len(commits), 1)
    number = min(len(commits), max(1, int(_ROWS_A_SOURCE / mean_rows)))
    chosen = {round(index * len(commits) / number) for index in range(number)}
    for reason in select.counts.dropped:
        chosen.add(next(index for index, commit in enumerate(commits) if reason in commit.counts.dropped))
    return sorted(chosen)


def _unit_rows(scored: Any, select: Snapshot, number: int) -> pl.DataFrame:
    rows = scored.piece.read().drop(
        "fail_stage", "fail_reason", "fail_message", "fail_transient", "drop_reason", strict=False
    )
    scores = scored.table().drop("sha256", "fail_reason")
    again = [name for name in scores.columns if name in rows.columns and name != "key"]
    rows = rows.drop(again).join(scores, on="key", how="left", maintain_order="left")
    verdicts = select.folder.read_rows(
        select.commits[number], ["key", "keep", "drop_reason", "fail_reason", "duplicate_of"]
    )
    joined: pl.DataFrame = rows.join(verdicts, on="key", how="left", maintain_order="left")
    return joined.with_columns(pl.lit(number).alias("unit"))


def _examples(snapshot: Snapshot, reason: str) -> pl.DataFrame:
    """Return up to three rows that failed for a reason, from the first unit that has one."""
    commit = next(commit for commit in snapshot.commits if reason in commit.counts.failed)
    rows = snapshot.folder.read_rows(commit, ["key", "fail_reason", "fail_message"])
    return rows.filter(pl.col("fail_reason") == reason).head(3)


def token_rows(snapshot: Snapshot, limit: int = 50) -> Iterator[tuple[StageDir, Commit, pl.DataFrame]]:
    """Yield the good index rows of some units of a tokenize snapshot, spread evenly over it."""
    commits = snapshot.commits
    number = min(len(commits), limit)
    for index in sorted({round(place * len(commits) / number) for place in range(number)}):
        rows = snapshot.folder.read_rows(commits[index])
        yield snapshot.folder, commits[index], rows.filter(pl.col("fail_reason").is_null())
