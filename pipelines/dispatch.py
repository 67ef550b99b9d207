"""Hands out the jobs of a stage until each one is committed or has failed for good, and tells how it goes.

The runner knows what is missing, the execution how to carry a job out; this file knows what to do when one is not
done. Nothing here is remembered on disk but the log: what was committed is found by listing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tokenmill.errors import RunError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, short
from tokenmill.pipelines.execution import Finished, RayPool, run_inline, run_on_ray
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Worker
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


def carry_out(
    title: str,
    works: Sequence[StageWork],
    jobs: list[Job],
    take_in: Callable[[Job, JobResult], None],
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
                take_in(job, finished.result)
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
