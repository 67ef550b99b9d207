"""Stage duplicates: copies, decided over the whole snapshot of a modality among the samples that pass the rules.

The verdicts are stored per slice, so a slice whose verdicts stay the same stays untouched. What an earlier snapshot
kept wins over newcomers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from tokenmill.filters.duplicates import find_duplicates
from tokenmill.filters.rules import Rules
from tokenmill.manifests.identity import digest_of, rows_digest
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import read_description, read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.scored import Scored

VERSION = 1
SCHEMA = 1
_DUPLICATE_COLUMNS = ("source", "key", "drop_reason", "duplicate_of")


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """Which samples are copies: equal bytes, and perceptual hashes within `max_distance` bits (None: not asked)."""

    exact: bool = True
    max_distance: int | None = None


def duplicates_work(
    store: Store, modality: str, scored: Sequence[Scored], rules: Mapping[str, Rules], settings: DuplicateSettings
) -> StageWork:
    """Describe the search for duplicates over all sources of a modality; one unit a slice, decided together.

    `rules` are those of each source.
    """
    config = StageConfig(
        stage="duplicates",
        version=VERSION,
        schema=SCHEMA,
        settings={"exact": settings.exact, "max_distance": settings.max_distance},
    )
    folder = StageDir(store=store, source=modality, config=config)
    inputs = digest_of([[r.to_json() for r in part.references] for part in scored] + [_identity(rules)])
    previous = _previous(folder, inputs)
    whole = digest_of([inputs, previous])
    return StageWork(
        title=f"duplicates {modality}",
        folders=(folder,),
        units=[
            Unit(
                inputs=(part.references[0], InputRef(name=f"all, seen from {part.piece.source}", digest=whole)),
                payload={"part": index},
            )
            for index, part in enumerate(scored)
        ],
        make_worker=partial(DuplicatesWorker, folder, tuple(scored), rules, settings, previous),
        parents={"inputs": inputs, "previous": previous},
    )


def _identity(rules: Mapping[str, Rules]) -> dict[str, Any]:
    """Return the rules as JSON values: once, where all sources have the same."""
    texts = {source: dict(one.texts) for source, one in rules.items()}
    first, *others = texts.values()
    return first if all(one == first for one in others) else texts


def _previous(folder: StageDir, inputs: str) -> str:
    """Return the snapshot whose kept samples win: the one this result was made after, else the newest of the chain."""
    found = {}
    for name in snapshot_names(folder):
        description = read_description(folder, name)
        found[description["digest"]] = description["parents"]
    for parents in found.values():
        if parents["inputs"] == inputs:
            return str(parents["previous"])
    followed = {parents["previous"] for parents in found.values()}
    heads = sorted(set(found) - followed)
    return heads[0] if heads else ""


class DuplicatesWorker:
    """Decides for all slices when the first one is asked for; then hands out each one's part."""

    def __init__(
        self,
        folder: StageDir,
        scored: tuple[Scored, ...],
        rules: Mapping[str, Rules],
        settings: DuplicateSettings,
        previous: str,
    ) -> None:
        self._folder, self._scored, self._rules, self._settings = folder, scored, rules, settings
        self._previous = previous
        self._parts: list[pl.DataFrame] | None = None

    def close(self) -> None:
        self._parts = None

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        if self._parts is None:
            self._parts = self._decide()
        rows = self._parts[job.unit.payload["part"]]
        dropped = {
            str(reason): int(number) for reason, number in rows["drop_reason"].drop_nulls().value_counts().rows()
        }
        kept = rows.height - sum(dropped.values())
        counts = Counts(rows_in=rows.height, kept=kept, out=kept, dropped=dropped)
        decided_s = time.perf_counter() - started
        (target,) = job.targets
        commit = publish(job, target, UnitOutput(rows=rows, counts=counts, digests={"values": rows_digest(rows)}))
        return JobResult(commits=(commit,), seconds={"decide": decided_s})

    def _decide(self) -> list[pl.DataFrame]:
        before = self._kept_before()
        tables = []
        for number, part in enumerate(self._scored):
            table = part.table()
            passes = self._rules[part.piece.source].apply(table).is_null() & table["fail_reason"].is_null()
            table = table.filter(passes).filter(~part.is_excluded())  # nobody is a copy of what is taken down
            tables.append(_for_comparison(table, part.piece.source, number, self._settings, before))
        samples = pl.concat(tables)
        distance = self._settings.max_distance
        if distance is None:
            samples = samples.with_columns(pl.lit(None, dtype=pl.UInt64).alias("phash"))
        found = find_duplicates(samples, max_distance=distance or 0)
        names = samples.select(_name()).to_series()
        verdicts = samples.with_row_index("row").join(found.with_columns(pl.col("row").cast(pl.UInt32)), "row", "left")
        verdicts = verdicts.with_columns(
            pl.col("reason").alias("drop_reason"),
            pl.Series("duplicate_of", [None if of is None else names[of] for of in verdicts["of"]], dtype=pl.String),
        ).sort("row")
        return [
            verdicts.filter(pl.col("part") == number).select(*_DUPLICATE_COLUMNS) for number in range(len(self._scored))
        ]

    def _kept_before(self) -> set[str]:
        if not self._previous:
            return set()
        snapshot = read_snapshot(self._folder, self._previous)
        kept: set[str] = set()
        for commit in snapshot.commits:
            rows = self._folder.read_rows(commit)
            kept.update(rows.filter(pl.col("drop_reason").is_null()).select(_name()).to_series())
        return kept


def _for_comparison(
    table: pl.DataFrame, source: str, part: int, settings: DuplicateSettings, before: set[str]
) -> pl.DataFrame:
    width, height = (pl.col(c) if c in table.columns else pl.lit(1) for c in ("width_px", "height_px"))
    phash = pl.col("phash") if "phash" in table.columns else pl.lit(None, dtype=pl.UInt64)
    digest = pl.col("sha256") if settings.exact else pl.lit(None, dtype=pl.String)
    return table.select(
        pl.col("key"),
        pl.lit(source).alias("source"),
        pl.lit(part).alias("part"),
        digest.alias("digest"),
        phash.alias("phash"),
        (width.cast(pl.Int64) * height.cast(pl.Int64)).alias("pixels"),
    ).with_columns(_name().is_in(sorted(before)).alias("kept_before"))


def _name() -> pl.Expr:
    """Name a sample across the sources of a modality."""
    return pl.col("source") + "/" + pl.col("key")
