"""Runs a stage: what is missing is handed out, what fails is handed out again, what is done becomes a snapshot.

The runner knows nothing about samples. It compares the units of a stage with the records on disk (one listing a
folder), so running again is a resume or a no-op, and a no-op costs only the listing and reading the records.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from tokenmill.errors import ManifestError, RunError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.execution import Finished, RayPool, run_inline, run_on_ray
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Target, Unit, Worker
from tokenmill.pipelines.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, none of which changes what is written.

    Attributes:
        pool: Ray workers, or None to work in this process.
        tries: how often a unit that dies is handed out in all.
        retry_failed: do units with failed samples again, as their next attempt.
        allow_work: False only reads: a missing unit is then an error.
    """

    pool: RayPool | None = None
    tries: int = 3
    retry_failed: bool = False
    allow_work: bool = True
    quiet: bool = False


class IncompleteStageError(RunError):
    """A stage that may only be read lacks units; `known` are the records each folder has, in order."""

    def __init__(self, title: str, works: Sequence[StageWork], known: Sequence[Sequence[Commit]]) -> None:
        wanted = sum(len(work.units) * len(work.folders) for work in works)
        missing = wanted - sum(len(commits) for commits in known)
        super().__init__(f'{title}: {missing} of {wanted} units are missing; run "tokenmill run" on the recipe first')
        self.folders = [(folder, len(work.units)) for work in works for folder in work.folders]
        self.known = known


@dataclass
class _Records:
    """The records one folder holds for the units of a stage."""

    folder: StageDir
    attempts: dict[str, int]
    commits: dict[str, Commit] = field(default_factory=dict)


class _Workers:
    """Builds the worker of a work when its first job arrives; one process may serve several sources."""

    def __init__(self, makers: Sequence[Callable[[], Worker]]) -> None:
        self._makers = makers
        self._built: dict[int, Worker] = {}

    def __call__(self, job: Job) -> JobResult:
        if job.work not in self._built:
            self._built[job.work] = self._makers[job.work]()
        return self._built[job.work](job)

    def close(self) -> None:
        for worker in self._built.values():
            worker.close()


def run_stage(title: str, works: Sequence[StageWork], options: RunOptions) -> list[tuple[Snapshot, ...]]:
    """Bring a stage up to date for all its sources at once; returns each work's snapshots, in its folders' order.

    Raises:
        RunError: units failed after all tries (each is named), or work is missing and not allowed.
    """
    records = [[_Records(folder, folder.record_names()) for folder in work.folders] for work in works]
    jobs: list[Job] = []
    for number, (work, known) in enumerate(zip(works, records, strict=True)):
        _read_known(known, work.units)
        jobs += _missing(work.units, known, options.retry_failed, number)
    if jobs and not options.allow_work:
        raise IncompleteStageError(
            title, works, [list(record.commits.values()) for known in records for record in known]
        )
    if jobs:
        for folder in {folder.path: folder for work in works for folder in work.folders}.values():
            folder.describe()
        _carry_out(title, works, jobs, records, options)
    return [_snapshots(work, known, publish=options.allow_work) for work, known in zip(works, records, strict=True)]


def _snapshots(work: StageWork, records: Sequence[_Records], *, publish: bool) -> tuple[Snapshot, ...]:
    snapshots = []
    for record in records:
        commits = tuple(record.commits[unit.name] for unit in work.units)
        snapshots.append(Snapshot(folder=record.folder, commits=commits, parents=work.parents))
        if publish:
            record.folder.describe()
            snapshots[-1].publish()
    return tuple(snapshots)


def _read_known(records: Sequence[_Records], units: Sequence[Unit]) -> None:
    wanted = [(record, unit.name) for record in records for unit in units if unit.name in record.attempts]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda pair: pair[0].folder.read_commit(pair[1], pair[0].attempts[pair[1]]), wanted)
        inputs = {unit.name: unit.inputs for unit in units}
        for (record, name), commit in zip(wanted, found, strict=True):
            if commit.inputs != inputs[name]:
                raise ManifestError(f"{record.folder.at(commit.record_name)}: records other inputs than the unit's")
            record.commits[name] = commit


def _missing(units: Sequence[Unit], records: Sequence[_Records], retry_failed: bool, work: int) -> Iterator[Job]:
    for unit in units:
        targets = [target for record in records if (target := _target(record, unit.name, retry_failed))]
        if targets:
            yield Job(unit=unit, targets=tuple(targets), work=work)


def _target(record: _Records, name: str, retry_failed: bool) -> Target | None:
    commit = record.commits.get(name)
    if commit is None:
        return Target(folder=record.folder)
    if retry_failed and commit.counts.failed:
        predecessor = sha256_hex(commit.to_bytes())
        return Target(folder=record.folder, attempt=commit.attempt + 1, predecessor=predecessor)
    return None


def _carry_out(
    title: str,
    works: Sequence[StageWork],
    jobs: list[Job],
    records: Sequence[Sequence[_Records]],
    options: RunOptions,
) -> None:
    """Hand the jobs out, up to `tries` times each; raises RunError naming those that never ended well."""
    total = sum(len(work.units) for work in works)
    workers = partial(_Workers, [work.make_worker for work in works])
    pending, errors, started = jobs, dict[tuple[int, str], str](), time.time()
    with Progress(title, total=total, done=total - len(jobs), quiet=options.quiet) as progress:
        for left in reversed(range(options.tries)):
            done: set[int] = set()
            for finished in _execute(workers, pending, options):
                job = pending[finished.index]
                if finished.result is None:
                    _note_failure(title, job, finished, left, errors)
                    continue
                done.add(finished.index)
                _take_in(records[job.work], job, finished.result)
                progress.add(finished)
                fault_point("run:after-unit")
            pending = [job for index, job in enumerate(pending) if index not in done]
            if not pending:
                break
        _write_log(title, works, jobs, progress, started)
        if not options.quiet:
            log.info("%s", progress.last_line(options.pool.workers if options.pool else 1))
    if pending:
        told = [f"{job.unit.name} ({errors.get((job.work, job.unit.name), 'its worker died')})" for job in pending[:5]]
        raise RunError(f"{title}: {len(pending)} units failed after {options.tries} tries: {', '.join(told)}")


def _note_failure(title: str, job: Job, finished: Finished, left: int, errors: dict[tuple[int, str], str]) -> None:
    if finished.fatal:
        raise RunError(f"{title}: unit {job.unit.name}: {finished.error}")
    errors[job.work, job.unit.name] = finished.error
    log.warning("%s: unit %s: %s (%d tries left)", title, job.unit.name, finished.error, left)


def _take_in(records: Sequence[_Records], job: Job, result: JobResult) -> None:
    by_path = {record.folder.path: record for record in records}
    for target, commit in zip(job.targets, result.commits, strict=True):
        by_path[target.folder.path].commits[job.unit.name] = commit


def _execute(workers: Callable[[], Worker], jobs: Sequence[Job], options: RunOptions) -> Iterable[Finished]:
    if options.pool is None:
        return run_inline(workers, jobs)
    return run_on_ray(workers, jobs, options.pool)


def _write_log(title: str, works: Sequence[StageWork], jobs: Sequence[Job], progress: Progress, started: float) -> None:
    """Leave timings beside the data; logs are outside every digest."""
    row = {"title": title, "started": started, "units": len(jobs), **progress.summary()}
    name = f"logs/run-{int(started * 1000)}-{short(digest_of([job.unit.name for job in jobs]))}.json"
    for work in works:
        folder = work.folders[0]
        folder.store.put(folder.at(name), (json.dumps(row) + "\n").encode())
