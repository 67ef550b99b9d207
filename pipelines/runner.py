"""Runs a stage: what is missing is handed out, what fails is handed out again, what is done becomes a snapshot.

The runner knows nothing about samples. It compares the units of a stage with the records on disk, as columns: running
again is a resume or a no-op, and a no-op over 1,000,000 units costs one listing, their rollups, a minute, 2.5 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tokenmill.errors import ManifestError, RunError
from tokenmill.manifests.ledger import Commits, Ledger
from tokenmill.manifests.records import Commit, unit_identity
from tokenmill.manifests.rollup_writer import RollupWriter
from tokenmill.manifests.rollups import FoundRollups, read_ledger
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.dispatch import RunOptions, carry_out
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Target, Unit

_UNITS_AT_ONCE = 65_536


class IncompleteStageError(RunError):
    """A stage that may only be read lacks units; `known` are the records each folder has, in order."""

    def __init__(self, title: str, works: Sequence[StageWork], known: Sequence[Sequence[Commit]]) -> None:
        wanted = sum(len(work.units) * len(work.folders) for work in works)
        missing = wanted - sum(len(commits) for commits in known)
        super().__init__(f'{title}: {missing} of {wanted} units are missing; run "tokenmill run" on the recipe first')
        self.folders = [(folder, len(work.units)) for work in works for folder in work.folders]
        self.known = known


@dataclass(kw_only=True)
class Known:
    """What one folder holds for the units of a stage; `units` are their names and digests, in order."""

    folder: StageDir
    units: pl.DataFrame
    ledger: Ledger
    found: FoundRollups

    def places(self) -> pl.DataFrame:
        """Return, one row a unit, the `place` of its record (null without one), and whether samples `has_failed`.

        Raises:
            ManifestError: a record was made from other inputs than the unit's.
        """
        newest = self.ledger.newest().rename({"unit_digest": "recorded"})
        found = self.units.join(newest, on="unit", how="left", maintain_order="left")
        for unit, attempt in found.filter(pl.col("recorded") != pl.col("unit_digest")).select("unit", "attempt").rows():
            path = self.folder.at(f"commits/{unit}.{attempt}.json")
            raise ManifestError(f"{path}: records other inputs than the unit's")
        return found.select("place", pl.col("has_failed").fill_null(False))

    def commits(self) -> Commits:
        """Return the records there are, in the order of the units."""
        return Commits(self.ledger, self.places()["place"].drop_nulls().to_numpy())


def run_stage(title: str, works: Sequence[StageWork], options: RunOptions) -> list[tuple[Snapshot, ...]]:
    """Bring a stage up to date for all its sources at once; returns each work's snapshots, in its folders' order.

    Raises:
        RunError: units failed after all tries (each is named), or work is missing and not allowed.
    """
    known = [_known(work) for work in works]
    jobs: list[Job] = []
    for number, work in enumerate(works):
        jobs += _missing(work, known[number], options.retry_failed, number)
    if jobs and not options.allow_work:
        raise IncompleteStageError(title, works, [record.commits() for records in known for record in records])
    if options.allow_work:
        _do(title, works, known, jobs, options)
    return [_snapshots(work, records, publish=options.allow_work) for work, records in zip(works, known, strict=True)]


def _known(work: StageWork) -> list[Known]:
    units = identities(work.units)
    found = [(folder, *read_ledger(folder, units["unit"])) for folder in work.folders]
    return [Known(folder=folder, units=units, ledger=ledger, found=rollups) for folder, ledger, rollups in found]


def _do(
    title: str, works: Sequence[StageWork], known: Sequence[Sequence[Known]], jobs: list[Job], options: RunOptions
) -> None:
    """Have the missing jobs done; their records go to the ledgers, and by and by into rollups."""
    writers = {record.folder.path: RollupWriter(record.ledger, record.found) for records in known for record in records}
    for writer in writers.values():
        writer.prepare()
    if jobs:
        for folder in {folder.path: folder for work in works for folder in work.folders}.values():
            folder.describe()
        carry_out(title, works, jobs, lambda job, result: _take_in(writers, job, result), options)
    for writer in writers.values():
        writer.finish()


def identities(units: Sequence[Unit]) -> pl.DataFrame:
    """Return the units' names and full digests as columns."""
    schema = {"unit": pl.String, "unit_digest": pl.String}
    tables = [pl.DataFrame(schema=schema)]
    for start in range(0, len(units), _UNITS_AT_ONCE):
        pairs = [unit_identity(unit.inputs) for unit in units[start : start + _UNITS_AT_ONCE]]
        tables.append(pl.DataFrame(pairs, schema=schema, orient="row"))
    return pl.concat(tables, rechunk=True)


def _snapshots(work: StageWork, records: Sequence[Known], *, publish: bool) -> tuple[Snapshot, ...]:
    snapshots = []
    for record in records:
        snapshots.append(Snapshot(folder=record.folder, commits=record.commits(), parents=work.parents))
        if publish:
            record.folder.describe()
            snapshots[-1].publish()
    return tuple(snapshots)


def _missing(work: StageWork, records: Sequence[Known], retry_failed: bool, number: int) -> Iterator[Job]:
    """Yield a job for every unit that a folder lacks, or whose failed samples are to be tried again."""
    tables = [record.places() for record in records]
    again = [(table["has_failed"] | work.revisits) & retry_failed for table in tables]
    lacks = [(table["place"].is_null() | retried).to_numpy() for table, retried in zip(tables, again, strict=True)]
    for index in np.flatnonzero(np.any(lacks, axis=0)).tolist():
        targets = [
            _target(record, table["place"][index])
            for record, table, lacking in zip(records, tables, lacks, strict=True)
            if lacking[index]
        ]
        yield Job(unit=work.units[index], targets=tuple(targets), work=number)


def _target(record: Known, place: int | None) -> Target:
    """Return the first attempt, or the one after the record that has failed samples."""
    if place is None:
        return Target(folder=record.folder)
    attempt, digest = record.ledger.table.select("attempt", "record_sha256").row(place)
    return Target(folder=record.folder, attempt=attempt + 1, predecessor=digest)


def _take_in(writers: Mapping[str, RollupWriter], job: Job, result: JobResult) -> None:
    for target, commit in zip(job.targets, result.commits, strict=True):
        writers[target.folder.path].add(commit)
