"""Runs a stage: what is missing is handed out, what fails is handed out again, what is done becomes a snapshot.

The runner knows nothing about samples. It compares the units of a stage with the records on disk (one listing a
folder), so running again is a resume or a no-op, and a no-op costs only the listing and reading the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tokenmill.errors import ManifestError, RunError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.dispatch import RunOptions, carry_out
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Target, Unit


class IncompleteStageError(RunError):
    """A stage that may only be read lacks units; `known` are the records each folder has, in order."""

    def __init__(self, title: str, works: Sequence[StageWork], known: Sequence[Sequence[Commit]]) -> None:
        wanted = sum(len(work.units) * len(work.folders) for work in works)
        missing = wanted - sum(len(commits) for commits in known)
        super().__init__(f'{title}: {missing} of {wanted} units are missing; run "tokenmill run" on the recipe first')
        self.folders = [(folder, len(work.units)) for work in works for folder in work.folders]
        self.known = known


@dataclass
class Known:
    """The records one folder holds for the units of a stage."""

    folder: StageDir
    attempts: dict[str, int]
    commits: dict[str, Commit] = field(default_factory=dict)


def run_stage(title: str, works: Sequence[StageWork], options: RunOptions) -> list[tuple[Snapshot, ...]]:
    """Bring a stage up to date for all its sources at once; returns each work's snapshots, in its folders' order.

    Raises:
        RunError: units failed after all tries (each is named), or work is missing and not allowed.
    """
    records = [[Known(folder, folder.record_names()) for folder in work.folders] for work in works]
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
        carry_out(title, works, jobs, lambda job, result: _take_in(records[job.work], job, result), options)
    return [_snapshots(work, known, publish=options.allow_work) for work, known in zip(works, records, strict=True)]


def _snapshots(work: StageWork, records: Sequence[Known], *, publish: bool) -> tuple[Snapshot, ...]:
    snapshots = []
    for record in records:
        commits = tuple(record.commits[unit.name] for unit in work.units)
        snapshots.append(Snapshot(folder=record.folder, commits=commits, parents=work.parents))
        if publish:
            record.folder.describe()
            snapshots[-1].publish()
    return tuple(snapshots)


def _read_known(records: Sequence[Known], units: Sequence[Unit]) -> None:
    wanted = [(record, unit.name) for record in records for unit in units if unit.name in record.attempts]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda pair: pair[0].folder.read_commit(pair[1], pair[0].attempts[pair[1]]), wanted)
        inputs = {unit.name: unit.inputs for unit in units}
        for (record, name), commit in zip(wanted, found, strict=True):
            if commit.inputs != inputs[name]:
                raise ManifestError(f"{record.folder.at(commit.record_name)}: records other inputs than the unit's")
            record.commits[name] = commit


def _missing(units: Sequence[Unit], records: Sequence[Known], retry_failed: bool, work: int) -> Iterator[Job]:
    for unit in units:
        targets = [target for record in records if (target := _target(record, unit.name, retry_failed))]
        if targets:
            yield Job(unit=unit, targets=tuple(targets), work=work)


def _target(record: Known, name: str, retry_failed: bool) -> Target | None:
    commit = record.commits.get(name)
    if commit is None:
        return Target(folder=record.folder)
    if retry_failed and commit.counts.failed:
        predecessor = sha256_hex(commit.to_bytes())
        return Target(folder=record.folder, attempt=commit.attempt + 1, predecessor=predecessor)
    return None


def _take_in(records: Sequence[Known], job: Job, result: JobResult) -> None:
    by_path = {record.folder.path: record for record in records}
    for target, commit in zip(job.targets, result.commits, strict=True):
        by_path[target.folder.path].commits[job.unit.name] = commit
