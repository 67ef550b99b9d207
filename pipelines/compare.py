"""Stage compare: decides over all samples of a modality at once which are copies of which.

One unit a state of the samples. It reads compact columns slice by slice, orders the samples by the survivor rule, lets
one kind of copies after the other drop some, and stores the verdicts; `duplicates` then writes those slices whose
verdicts changed. Reading and the search itself are mapped over parts, on the stage's pool or here; this process holds
the compact columns and keys of all samples, and names only of samples that somebody is a copy of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.filters.preference import Preference
from tokenmill.filters.rules import Rules
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.snapshots import Snapshot, read_snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.compare_engines import Engines
from tokenmill.pipelines.compare_kinds import (
    EXACT,
    NEAR,
    REASONS,
    SEMANTIC,
    TEXT,
    ColumnAtLeast,
    Positions,
    Stars,
    equal_leaders,
    gathered,
)
from tokenmill.pipelines.compare_read import PHASH, AskedPart, Comparable, KeptNames, Rows, Values, names
from tokenmill.pipelines.earlier_verdicts import earlier_verdicts
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.pipelines.scored import Scored
from tokenmill.pipelines.verdicts import Verdicts, publish_verdicts

VERSION = 1
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """Which samples are copies, and who of them survives.

    Attributes:
        exact: equal bytes.
        max_distance: perceptual hashes within so many bits (None: not asked).
        semantic: vectors with at least so large a cosine.
        text: signatures of texts with at least so large a share in common.
        preference: the survivor rule; what an earlier snapshot kept comes before it where `keep_earlier`.
    """

    exact: bool = True
    max_distance: int | None = None
    semantic: ColumnAtLeast | None = None
    text: ColumnAtLeast | None = None
    preference: Preference
    keep_earlier: bool = True

    def config(self, stage: str, version: int, schema: int) -> StageConfig:
        """Return the settings that name a folder; what is at its default is not among them."""
        settings: dict[str, object] = {"exact": self.exact, "max_distance": self.max_distance}
        for name, asked in (("semantic", self.semantic), ("text", self.text)):
            if asked is not None:
                settings[name] = {"column": asked.column, "least": asked.least}
        if self.preference.texts:
            settings["prefer"] = list(self.preference.texts)
        if not self.keep_earlier:
            settings["keep_earlier"] = False
        return StageConfig(stage=stage, version=version, schema=schema, settings=settings)


def compare_work(
    store: Store,
    modality: str,
    scored: Sequence[Scored],
    rules: Mapping[str, Rules],
    settings: DuplicateSettings,
    verdicts: StageDir,
    engines: Engines,
) -> StageWork:
    """Describe the decision over all sources of a modality.

    `rules` are those of each source; `verdicts` is the folder of stage `duplicates`.
    """
    folder = StageDir(store=store, source=modality, config=settings.config("compare", VERSION, SCHEMA))
    samples = [[part.piece.source, *(r.to_json() for r in part.references)] for part in scored]
    inputs, judged = digest_of([*samples, _identity(rules)]), digest_of(_identity(rules))
    previous = earlier_verdicts(folder, verdicts, inputs, judged) if settings.keep_earlier else ""
    asked = Question(
        scored=tuple(scored), rules=rules, settings=settings, folder=verdicts, previous=previous, engines=engines
    )
    references = (InputRef(name="samples", digest=inputs), InputRef(name="kept before", digest=previous))
    return StageWork(
        title=f"compare {modality}",
        folders=(folder,),
        units=[Unit(inputs=references)],
        make_worker=partial(CompareWorker, asked),
        parents={"inputs": inputs, "previous": previous, "rules": judged},
    )


def _identity(rules: Mapping[str, Rules]) -> dict[str, Any]:
    """Return the rules as JSON values: once, where all sources have the same."""
    texts = {source: dict(one.texts) for source, one in rules.items()}
    first, *others = texts.values()
    return first if all(one == first for one in others) else texts


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be decided; `folder` and `previous` name the snapshot whose kept samples win (empty: none)."""

    scored: tuple[Scored, ...]
    rules: Mapping[str, Rules]
    settings: DuplicateSettings
    folder: StageDir
    previous: str
    engines: Engines

    @cached_property
    def before(self) -> Snapshot | None:
        return read_snapshot(self.folder, self.previous) if self.previous else None

    def parts(self) -> list[AskedPart]:
        """Pair every slice with the unit of the earlier snapshot that was made of the same samples, if there is one."""
        known = {_slice_of(commit): commit for commit in (self.before.commits if self.before else ())}
        return [
            AskedPart(scored=part, folder=self.folder, before=known.get(slice_references(part))) for part in self.scored
        ]


def slice_references(part: Scored) -> tuple[InputRef, InputRef]:
    """Return what a slice is known by from one decision to the next: its samples, and the source they are of."""
    return part.references[0], InputRef(name="source", digest=digest_of(part.piece.source))


def _slice_of(commit: Commit) -> tuple[InputRef, ...]:
    """Return the same of a unit of `duplicates`."""
    return commit.inputs[:2]


class CompareWorker:
    """Decides; runs in the process of the driver, whose pool does the work."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        verdicts = decide(self._question)
        decided_s = time.perf_counter() - started
        (target,) = job.targets
        commit = publish_verdicts(target.folder, job.unit.name, job.unit.inputs, verdicts)
        written_s = time.perf_counter() - started - decided_s
        return JobResult(commits=(commit,), seconds={"decide": decided_s, "write": written_s})


def decide(question: Question) -> Verdicts:
    """Return who is dropped, why and for whom."""
    compared, starts = _compared(question)
    rows = compared["row"].to_numpy()
    order, kept_before = _order(compared, question, starts), int(compared["kept_before"].sum())
    repeated = _repeated(compared["key"], question, starts)
    columns = compared.select(pl.selectors.starts_with("digest_") | pl.selectors.by_name(PHASH, require_all=False))
    del compared
    dropped, of, kinds = _stars(question, columns, order, starts, rows, kept_before).settled()
    table = pl.DataFrame(
        {
            "sample": order[dropped],
            "reason": pl.Series(REASONS).gather(kinds - 1) if len(kinds) else pl.Series([], dtype=pl.String),
            "of": _names(question, order[of], starts, rows, repeated),
        }
    )
    slices = [(part.piece.source, part.piece.commit.inputs[0].name) for part in question.scored]
    return Verdicts(slices=slices, starts=starts, rows=rows, dropped=table.sort("sample"))


def _compared(question: Question) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return the compact columns of all samples, slice after slice, and where each slice begins."""
    settings = question.settings
    read = Comparable(
        rules=question.rules,
        preference=settings.preference,
        exact=settings.exact,
        phash=settings.max_distance is not None,
    )
    parts = question.parts()
    tables = list(question.engines.map_parts(read, parts))
    starts = np.concatenate([[0], np.cumsum([table.height for table in tables])]).astype(np.int64)
    compared = pl.concat(tables)
    return _with_moved(question, parts, compared, starts), starts


def _with_moved(
    question: Question, parts: Sequence[AskedPart], compared: pl.DataFrame, starts: NDArray[np.int64]
) -> pl.DataFrame:
    """Note what was kept before in slices that are no more: their samples may lie in new ones (another `unit_rows`)."""
    if question.before is None:
        return compared
    found = {part.before.unit for part in parts if part.before is not None}
    gone = [commit for commit in question.before.commits if commit.unit not in found]
    new = [number for number, part in enumerate(parts) if part.before is None]
    if not gone or not new:
        return compared
    kept = pl.concat(list(question.engines.map_parts(KeptNames(folder=question.folder), gone)))
    pieces = [part.scored.piece for part in parts]
    of_part = np.repeat(np.arange(len(parts)), np.diff(starts))
    candidates = (
        compared.select("key")
        .with_columns(
            source=pl.Series([piece.source for piece in pieces]).gather(of_part),
            shard=pl.Series([piece.commit.inputs[0].name for piece in pieces]).gather(of_part),
            repeated=pl.Series(_repeated(compared["key"], question, starts)),
        )
        .with_row_index("sample")
        .filter(pl.Series(np.isin(of_part, new)))
    )
    flags = compared["kept_before"].to_numpy().copy()
    flags[moved(candidates, kept).to_numpy()] = True
    return compared.with_columns(kept_before=pl.Series(flags))


def moved(candidates: pl.DataFrame, kept: pl.DataFrame) -> pl.Series:
    """Return `sample` of those candidates that were kept: of the same shard and key, or of a key that is but once."""
    once = kept.filter(~pl.struct("source", "key").is_duplicated())
    found = (
        candidates.join(kept, on=["source", "shard", "key"], how="semi"),
        candidates.filter(~pl.col("repeated")).join(once, on=["source", "key"], how="semi"),
    )
    return pl.concat(found)["sample"].unique()


def _source_numbers(question: Question, starts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the place of each sample's source among the sources."""
    sources = [part.piece.source for part in question.scored]
    rank = {source: number for number, source in enumerate(sorted(set(sources)))}
    return np.repeat(np.array([rank[source] for source in sources], np.uint32), np.diff(starts))


def _repeated(keys: pl.Series, question: Question, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say of each sample whether another one of its source has its key, as where each shard counts from 0."""
    table = pl.DataFrame({"source": _source_numbers(question, starts), "key": keys.hash(seed=0)})
    return table.is_duplicated().to_numpy()


def _order(compared: pl.DataFrame, question: Question, starts: NDArray[np.int64]) -> Positions:
    """Return the samples in order of preference: kept before, the survivor rule, then source, key and place."""
    preference = question.settings.preference
    by = ["kept_before", *preference.names, "source", "key", "sample"]
    sources = pl.Series("source", _source_numbers(question, starts))
    return (
        compared.select("kept_before", *preference.names, sources, "key")
        .with_row_index("sample")
        .sort(by, descending=[True, *preference.descending, False, False, False], nulls_last=True)["sample"]
        .to_numpy()
        .astype(np.int64)
    )


def _stars(
    question: Question,
    columns: pl.DataFrame,
    order: Positions,
    starts: NDArray[np.int64],
    rows: Rows,
    kept_before: int,
) -> Stars:
    """Let one kind after the other drop copies; positions are places in `order`, whose first were kept before."""
    settings = question.settings
    stars = Stars(len(order), kept_before)
    if settings.exact:
        high, low = columns["digest_high"].gather(order), columns["digest_low"].gather(order)
        stars.drop(EXACT, np.arange(len(order)), equal_leaders(high, low))
    with question.engines.folder() as folder:
        if settings.max_distance is not None:
            left = stars.left
            hashes = columns[PHASH].gather(order[left])
            left, hashes = left[hashes.is_not_null().to_numpy()], hashes.drop_nulls()
            leaders = question.engines.near_pictures(hashes.to_numpy(), settings.max_distance, folder / "hashes")
            stars.drop(NEAR, left, leaders)
        for kind, asked, engine in (
            (SEMANTIC, settings.semantic, question.engines.near_vectors),
            (TEXT, settings.text, question.engines.near_texts),
        ):
            if asked is not None:
                left = stars.left
                values, there = _values(question, asked.column, order[left], starts, rows, folder)
                stars.drop(kind, left[there], engine(values, asked.least, folder / asked.column))
    return stars


def _by_part(
    samples: Positions, starts: NDArray[np.int64], rows: Rows
) -> tuple[list[int], list[Rows], list[Positions]]:
    """Group samples by slice: the slices, the rows of each, and where each stands among `samples`."""
    places = np.argsort(samples, kind="stable")
    borders = np.searchsorted(samples[places], starts)
    numbers = [part for part in range(len(starts) - 1) if borders[part] < borders[part + 1]]
    where = [places[borders[part] : borders[part + 1]] for part in numbers]
    return numbers, [rows[samples[one]] for one in where], where


def _values(
    question: Question, column: str, samples: Positions, starts: NDArray[np.int64], rows: Rows, place: Path
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    numbers, asked, where = _by_part(samples, starts, rows)
    parts = [(question.scored[number], some) for number, some in zip(numbers, asked, strict=True)]
    found = question.engines.map_parts(Values(column=column), parts)
    return gathered(iter(found), where, len(samples), place / f"{column}.npy")


def _names(
    question: Question, samples: Positions, starts: NDArray[np.int64], rows: Rows, repeated: NDArray[np.bool_]
) -> pl.Series:
    """Return the names of samples, reading each slice that holds one of them once."""
    unique, inverse = np.unique(samples, return_inverse=True)
    numbers, asked, where = _by_part(unique, starts, rows)
    parts = [
        (question.scored[number], some, repeated[unique[places]])
        for number, some, places in zip(numbers, asked, where, strict=True)
    ]
    found = list(question.engines.map_parts(names, parts))
    whole = pl.concat(found) if found else pl.Series([], dtype=pl.String)
    return whole.gather(inverse)
