"""Stage select: rules and duplicates over annotations; no pixel is read, so new thresholds cost seconds.

Rules judge a sample by its own columns. Duplicates are decided over the whole snapshot of a modality, among the samples
that pass the rules, and stored per unit (stage `duplicates`), so a unit whose verdicts stay the same stays untouched.
What an earlier snapshot of `duplicates` kept wins over newcomers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl

from tokenmill.filters.duplicates import find_duplicates
from tokenmill.filters.rules import Rules
from tokenmill.manifests.identity import digest_of, rows_digest
from tokenmill.manifests.records import Commit, Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot, read_description, read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import REASON
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.samples import SampleSlice

VERSION = 1
SCHEMA = 1
_DUPLICATE_COLUMNS = ("source", "key", "drop_reason", "duplicate_of")


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """The record that says which samples of a slice are taken down; there is none where no sample is."""

    folder: StageDir
    commit: Commit

    @property
    def reference(self) -> InputRef:
        return InputRef(name=REASON, digest=self.commit.digests["excluded"])

    def keys(self) -> pl.Series:
        """Return the keys of the taken-down samples."""
        rows = self.folder.read_rows(self.commit, ["key", "drop_reason"])
        return rows.filter(pl.col("drop_reason").is_not_null())["key"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A slice with the records of its scores, in the scorers' order, and with what is taken down of it."""

    piece: SampleSlice
    scores: tuple[tuple[StageDir, Commit], ...]
    excluded: Excluded | None = None

    @property
    def references(self) -> tuple[InputRef, ...]:
        values = [InputRef(name=d.config.settings["scorer"], digest=c.digests["values"]) for d, c in self.scores]
        return (self.piece.reference("content"), *values, *([self.excluded.reference] if self.excluded else []))

    def is_excluded(self) -> pl.Expr:
        """Return what is true for the rows of taken-down samples."""
        return pl.lit(False) if self.excluded is None else pl.col("key").is_in(self.excluded.keys().to_list())

    def table(self) -> pl.DataFrame:
        """Return key, digest of the bytes, all score columns and the first failure of every sample."""
        frame = self.piece.read().select("key", "sha256")
        failure = pl.lit(None, dtype=pl.String).alias("fail_reason")
        frame = frame.with_columns(failure)
        for folder, commit in self.scores:
            scores = folder.read_rows(commit).drop("fail_stage", "fail_message", "fail_transient")
            frame = frame.join(scores, on="key", how="left", suffix="_new", maintain_order="left")
            frame = frame.with_columns(pl.coalesce("fail_reason", "fail_reason_new").alias("fail_reason"))
            frame = frame.drop("fail_reason_new")
        return frame


def scored_slices(pieces: Sequence[SampleSlice], snapshots: Sequence[Snapshot]) -> list[Scored]:
    """Pair slices with their records: the units of a scoring snapshot stand in the order of the slices."""
    return [
        Scored(piece=piece, scores=tuple((snapshot.folder, snapshot.commits[index]) for snapshot in snapshots))
        for index, piece in enumerate(pieces)
    ]


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """Which samples are copies: equal bytes, and perceptual hashes within `max_distance` bits (None: not asked)."""

    exact: bool = True
    max_distance: int | None = None


def duplicates_work(
    store: Store, modality: str, scored: Sequence[Scored], rules: Rules, settings: DuplicateSettings
) -> StageWork:
    """Describe the search for duplicates over all sources of a modality; one unit a slice, decided together."""
    config = StageConfig(
        stage="duplicates",
        version=VERSION,
        schema=SCHEMA,
        settings={"exact": settings.exact, "max_distance": settings.max_distance},
    )
    folder = StageDir(store=store, source=modality, config=config)
    inputs = digest_of([[r.to_json() for r in part.references] for part in scored] + [dict(rules.texts)])
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
        self, folder: StageDir, scored: tuple[Scored, ...], rules: Rules, settings: DuplicateSettings, previous: str
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
            passes = self._rules.apply(table).is_null() & table["fail_reason"].is_null()
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


def select_work(
    store: Store,
    source: str,
    scored: Sequence[Scored],
    duplicates: Snapshot | None,
    first_part: int,
    rules: Rules,
    carry: Sequence[str],
    parents: Mapping[str, str],
) -> StageWork:
    """Describe the selection of one source; its slices are parts `first_part`… of the modality's duplicates."""
    config = StageConfig(
        stage="select",
        version=VERSION,
        schema=SCHEMA,
        settings={"rules": [[name, text] for name, text in rules.texts.items()], "carry": list(carry)},
    )
    units = []
    for index, part in enumerate(scored):
        found = None if duplicates is None else duplicates.commits[first_part + index]
        extra = () if found is None else (InputRef(name="duplicates", digest=found.digests["values"]),)
        units.append(Unit(inputs=(*part.references, *extra), payload={"part": part, "duplicates": found}))
    return StageWork(
        title=f"select {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=units,
        make_worker=partial(SelectWorker, rules, tuple(carry), None if duplicates is None else duplicates.folder),
        parents=parents,
    )


class SelectWorker:
    """Joins a slice's annotations and says of every sample: kept, dropped and why, or failed and why."""

    def __init__(self, rules: Rules, carry: tuple[str, ...], duplicates: StageDir | None) -> None:
        self._rules, self._carry, self._duplicates = rules, carry, duplicates

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        part: Scored = job.unit.payload["part"]
        table = part.table()
        table = table.with_columns(
            self._rules.apply(table).alias("rule"),
            pl.when(part.is_excluded()).then(pl.lit(REASON)).alias("taken_down"),
        )
        table = self._with_duplicates(table, job.unit.payload["duplicates"])
        why = pl.coalesce("taken_down", "rule", "drop_reason")
        reason = pl.when(pl.col("fail_reason").is_null()).then(why).alias("drop_reason")
        rows = table.select("key", reason, "fail_reason", "duplicate_of", *self._carry).with_columns(
            (pl.col("drop_reason").is_null() & pl.col("fail_reason").is_null()).alias("keep")
        )
        kept = rows.filter(pl.col("keep"))
        counts = Counts(
            rows_in=rows.height,
            kept=kept.height,
            out=kept.height,
            dropped=_numbers(rows["drop_reason"]),
            failed=_numbers(rows["fail_reason"]),
        )
        (target,) = job.targets
        digests = {"kept": rows_digest(kept.select("key", *self._carry))}
        commit = publish(job, target, UnitOutput(rows=rows, counts=counts, digests=digests))
        return JobResult(commits=(commit,), seconds={"query": time.perf_counter() - started})

    def _with_duplicates(self, table: pl.DataFrame, commit: Commit | None) -> pl.DataFrame:
        if commit is None or self._duplicates is None:
            none = pl.lit(None, dtype=pl.String)
            return table.with_columns(none.alias("drop_reason"), none.alias("duplicate_of"))
        found = self._duplicates.read_rows(commit, ["key", "drop_reason", "duplicate_of"])
        return table.join(found, on="key", how="left", maintain_order="left")


def _numbers(reasons: pl.Series) -> dict[str, int]:
    counter = Counter(str(reason) for reason in reasons.drop_nulls())
    return dict(sorted(counter.items()))
