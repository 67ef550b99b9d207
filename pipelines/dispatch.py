"""Hands out the jobs of a stage until each one is committed or has failed for good, and tells how it goes.

The runner knows what is missing, the execution how to carry a job out; this file knows what to do when one is not done.
A lost unit is handed out again after all others, one at a time a worker: whoever dies then died of that unit. Its tries
are counted on disk (`failures.py`). A pass is cut into waves of 4,096 units, because Ray Data wants every row up front.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from tokenmill.errors import RunError
from tokenmill.faults import fault_point
from tokenmill.pipelines.draining import Drain, draining
from tokenmill.pipelines.execution import Finished, run_inline
from tokenmill.pipelines.execution_threads import available_cpus, run_in_threads
from tokenmill.pipelines.failures import Failure, forget_failure, read_failures, write_failure
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Workers
from tokenmill.pipelines.metrics import StageMetrics
from tokenmill.pipelines.progress import Progress
from tokenmill.pipelines.ray_cluster import RayPool

log = logging.getLogger(__name__)
_WAVE_UNITS, _UNITS_A_WORKER = 4096, 64  # a wave is no smaller, and gives each worker as many: models load once a wave


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, none of which changes what is written.

    Attributes:
        pool: Ray workers, or None to work in this process.
        threads: of this process that do units at the same time, where there is no pool; for queries alone, whose
            libraries let the interpreter go.
        cores: of this process that a unit makes use of, where there is no pool; what the last line reckons with.
        tries: how often a unit that dies is handed out in all.
        retry_failed: do units with failed samples again, as their next attempt.
        allow_work: False only reads: a missing unit is then an error.
        unit_timeout_s: after which a unit is taken from its worker and handed out again.
        start_timeout_s: for the first worker of a Ray pool to begin.
        drain_s: after SIGTERM, for units in flight to be committed.
        metrics_port: of the Prometheus endpoint; None starts none.
    """

    pool: RayPool | None = None
    threads: int = 1
    cores: int = 1
    tries: int = 3
    retry_failed: bool = False
    allow_work: bool = True
    quiet: bool = False
    unit_timeout_s: float = 14_400.0
    start_timeout_s: float = 600.0
    drain_s: float = 25.0
    metrics_port: int | None = None


def carry_out(
    title: str,
    works: Sequence[StageWork],
    jobs: Sequence[Job],
    take_in: Callable[[Job, JobResult], None],
    options: RunOptions,
) -> None:
    """Hand the jobs out, up to `tries` times each.

    Raises:
        RunError: units failed after all tries (each is named), or a fault that no other try can mend.
        KeyboardInterrupt: the run was asked to end; what was in flight is committed or dropped.
    """
    total = sum(len(work.units) for work in works)
    folders = {work.folders[0].source: work.folders[0] for work in works}
    done, count = total - len(jobs), options.pool.all_workers if options.pool else options.threads
    with (
        draining(options.drain_s) as drain,
        Progress(title, total=total, done=done, quiet=options.quiet) as progress,
        StageMetrics(
            title, total=total, done=done, workers=count, port=options.metrics_port, folders=folders
        ) as metrics,
    ):
        round_ = _Round(title, works, options, drain, progress, metrics)
        failed = round_.all(jobs, take_in)
        if not options.quiet:
            log.info("%s", _last_line(progress, options.pool, max(options.threads, options.cores)))
    if drain.asked:  # only now, or a SIGTERM at the very end would let the next stage begin
        raise KeyboardInterrupt
    if failed:
        told = ", ".join(f"{job.unit.name} ({round_.why(job)})" for job in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise RunError(f"{title}: {len(failed)} units failed after {options.tries} tries: {told}{more}")


def _last_line(progress: Progress, pool: RayPool | None, cores: int) -> str:
    if pool is None:
        return progress.last_line(float(min(cores, available_cpus())))
    decoders = pool.decode.workers if pool.decode else 0
    return progress.last_line(pool.all_cpus, gpus=pool.gpus, workers=pool.workers, decode_workers=decoders)


@dataclass
class _Round:
    """The jobs of one run of a stage on their way: who is lost, how often, and why."""

    title: str
    works: Sequence[StageWork]
    options: RunOptions
    drain: Drain
    progress: Progress
    metrics: StageMetrics
    _lost: Counter[tuple[int, str]] = field(default_factory=Counter)
    _known: dict[tuple[int, str], Failure] = field(default_factory=dict)

    def all(self, jobs: Sequence[Job], take_in: Callable[[Job, JobResult], None]) -> list[Job]:
        """Hand out until nothing can be done any more; returns the jobs that failed."""
        for number in sorted({job.work for job in jobs}):
            for unit, failure in read_failures(self.works[number].folders[0]).items():
                self._known[number, unit] = failure
        pending = [job for job in jobs if _name(job) not in self._known]
        suspects = [job for job in jobs if _name(job) in self._known]
        failed: list[Job] = []
        while pending or suspects:
            careful = not pending
            size = max(_WAVE_UNITS, _UNITS_A_WORKER * (self.options.pool.all_workers if self.options.pool else 1))
            wave, rest = (suspects, []) if careful else (pending[:size], pending[size:])
            left = self._pass(wave, take_in, careful=careful)
            fresh = [job for job in left if not self._lost[_name(job)]]
            again = [job for job in left if 0 < self._lost[_name(job)] < self.options.tries]
            failed += [job for job in left if self._lost[_name(job)] >= self.options.tries]
            pending = rest + ([] if careful else fresh)
            suspects = again + (fresh if careful else suspects)
        return failed

    def _pass(self, jobs: Sequence[Job], take_in: Callable[[Job, JobResult], None], *, careful: bool) -> list[Job]:
        """Hand some jobs out once; returns those that are not done."""
        done: set[int] = set()
        heard = 0
        makers = partial(Workers, [work.make_worker for work in self.works])
        with closing(_execute(makers, jobs, self.options, self.drain, careful=careful)) as found:
            for finished in found:
                heard += 1
                job = jobs[finished.index]
                if finished.result is None:
                    self._note_lost(job, finished)
                    continue
                done.add(finished.index)
                take_in(job, finished.result)
                self._note_done(job, finished)
        if self.drain.asked:
            raise KeyboardInterrupt
        if not heard:
            raise RunError(f"{self.title}: no unit was begun; the workers may not start at all (see Ray's logs)")
        return [job for index, job in enumerate(jobs) if index not in done]

    def _note_done(self, job: Job, finished: Finished) -> None:
        self.progress.add(finished)
        folder = job.targets[0].folder
        self.metrics.finished(job.unit.name, folder.source, finished, try_number=1 + self._lost[_name(job)])
        if _name(job) in self._known:
            forget_failure(self.works[job.work].folders[0], job.unit.name)
        fault_point("run:after-unit")

    def _note_lost(self, job: Job, finished: Finished) -> None:
        if finished.fatal:
            raise RunError(f"{self.title}: unit {job.unit.name}: {finished.error}")
        name = _name(job)
        self._lost[name] += 1
        before = self._known[name].tries if name in self._known else 0
        self._known[name] = Failure(unit=job.unit.name, tries=before + 1, error=finished.error)
        write_failure(self.works[job.work].folders[0], self._known[name])
        self.metrics.lost(job.unit.name, job.targets[0].folder.source, finished.error, self._lost[name])
        left = self.options.tries - self._lost[name]
        log.warning("%s: unit %s: %s (%d tries left)", self.title, job.unit.name, finished.error, left)

    def why(self, job: Job) -> str:
        return self._known[_name(job)].error


def _name(job: Job) -> tuple[int, str]:
    return job.work, job.unit.name


def _execute(
    makers: Callable[[], Workers], jobs: Sequence[Job], options: RunOptions, drain: Drain, *, careful: bool
) -> Generator[Finished]:
    if options.pool is None and options.threads > 1 and not careful:
        return run_in_threads(makers, jobs, threads=options.threads, drain=drain)
    if options.pool is None:
        return run_inline(makers, jobs, unit_timeout_s=options.unit_timeout_s, drain=drain)
    from tokenmill.pipelines.execution_ray import PassLimits, run_on_ray

    limits = PassLimits(
        unit_timeout_s=options.unit_timeout_s, start_timeout_s=options.start_timeout_s, queued=1 if careful else 2
    )
    if options.pool.decode is not None:
        from tokenmill.pipelines.execution_halves import run_in_halves

        return run_in_halves(makers, jobs, options.pool, limits, drain)
    return run_on_ray(makers, jobs, options.pool, limits, drain)
