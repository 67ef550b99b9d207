"""What a stage has to do, as data: units, the folders they go to, and how a worker's result becomes files and a record.

A stage is described (`StageWork`) before anything runs; the runner compares that with the records on disk and hands
out what is missing. Workers see one `Job` at a time and publish it themselves, so nothing big travels back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef, unit_name
from tokenmill.manifests.stagedir import StageDir, table_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A list of inputs that makes one output a folder.

    `payload` is what the worker needs to find them (records, paths); identity is in `inputs` alone.
    """

    inputs: tuple[InputRef, ...]
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return unit_name(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A folder that lacks a unit, with the attempt to write and the record that attempt replaces."""

    folder: StageDir
    attempt: int = 0
    predecessor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit and the folders that lack it: a scoring pass writes one folder a scorer, other stages one."""

    unit: Unit
    targets: tuple[Target, ...]
    work: int = 0  # which of the works that run together it belongs to


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a worker reports: its records and the seconds each phase took (`read`, `decode`, `model`, `write`).

    `found` is True when the records were there already: another run, or this one before it was disturbed, was first.
    `rows` are those worked on just now, where the record holds others too; `notes` are counts that the log tells and no
    record, because they hang on what was there before.
    """

    commits: tuple[Commit, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    found: bool = False
    rows: int | None = None
    notes: Mapping[str, int] = field(default_factory=dict)


class Worker(Protocol):
    """Holds what is costly to build (models, decoders) and does one job after the other."""

    def __call__(self, job: Job) -> JobResult: ...

    def close(self) -> None: ...


class Workers:
    """Builds the worker of a work when its first job arrives; one process may serve several sources."""

    def __init__(self, makers: Sequence[Callable[[], Worker]]) -> None:
        self._makers = makers
        self._built: dict[int, Worker] = {}

    def worker(self, work: int) -> Worker:
        if work not in self._built:
            self._built[work] = self._makers[work]()
        return self._built[work]

    def __call__(self, job: Job) -> JobResult:
        return self.worker(job.work)(job)

    def close(self) -> None:
        for worker in self._built.values():
            worker.close()


class HalvedWorker(Worker, Protocol):
    """A worker whose unit can be decoded in one process and seen by a model in another.

    `prepare` yields some chunks of resized pixels (tens of MB each), `compute` turns one into a small part, `complete`
    makes files and a record of all parts of a unit, in order. Called as a whole it does the same in one process, with
    the same bytes as the result.
    """

    def prepare(self, job: Job) -> Iterator[Any]: ...

    def compute(self, chunk: Any) -> Any: ...

    def complete(self, job: Job, parts: Sequence[Any]) -> JobResult: ...


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """A whole stage for one source: every unit in order, done or not.

    `make_worker` runs in the worker's process and has to pickle; `parents` are the digests of the snapshots read. With
    `revisits` a retry of failed samples looks at every unit again: what fails hangs on more than its record.
    """

    title: str
    folders: tuple[StageDir, ...]
    units: Sequence[Unit]
    make_worker: Callable[[], Worker]
    parents: Mapping[str, str] = field(default_factory=dict)
    revisits: bool = False


@dataclass(frozen=True, kw_only=True)
class UnitOutput:
    """What one unit became, before it is published; `archive` is a finished file in the folder's staging place."""

    rows: pl.DataFrame
    counts: Counts
    digests: Mapping[str, str] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    archive: StagedArchive | None = None


@dataclass(frozen=True, kw_only=True)
class StagedArchive:
    """A tar that was written but not published, with the digest taken while writing it."""

    path: Path
    bytes: int
    sha256: str


def found_result(job: Job) -> JobResult | None:
    """Return the records of a job that somebody else has done by now, or None; costs one look a folder.

    Without it a unit whose answer got lost with its node, or that a second run works on too, would be done twice.
    """
    name = job.unit.name
    if not all(t.folder.store.exists(t.folder.at(f"commits/{name}.{t.attempt}.json")) for t in job.targets):
        return None
    return JobResult(commits=tuple(t.folder.read_commit(name, t.attempt) for t in job.targets), found=True)


def publish(job: Job, target: Target, output: UnitOutput) -> Commit:
    """Publish a unit's files, then its record; returns the record that stands (another worker's, if it was first)."""
    folder, unit = target.folder, job.unit.name
    fault_point("commit:before-data")
    files: list[FileEntry] = []
    if output.archive is not None:
        archive = output.archive
        name = f"{unit}-{archive.sha256[:8]}.tar"
        folder.store.put_file(folder.at(name), archive.path)
        files.append(FileEntry(name=name, role="data", bytes=archive.bytes, sha256=archive.sha256))
        fault_point("commit:between-files")
    table = table_bytes(output.rows, folder.config.schema)
    files.append(folder.publish_bytes(unit, ".parquet", table, "rows"))
    if target.attempt:
        before = folder.read_commit(unit, target.attempt - 1)
        found = (tuple(files), output.counts, output.digests, output.totals)
        if (before.files, before.counts, before.digests, before.totals) == found:
            return before  # the retry changed nothing, and must not give downstream stages another identity
    return folder.publish_commit(
        Commit(
            stage=folder.config.stage,
            source=folder.source,
            config=folder.config.digest,
            unit=unit,
            inputs=job.unit.inputs,
            counts=output.counts,
            files=tuple(files),
            attempt=target.attempt,
            predecessor=target.predecessor,
            digests=output.digests,
            totals=output.totals,
        )
    )
