"""How one job is carried out and reported, and how jobs are carried out one after the other in this process.

`execution_ray.py` does the same on a pool of processes, anywhere. Both give the same files; this one needs neither Ray
nor 10 seconds to start it, and is what tests and small stages use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenmill.errors import RunError, TokenmillError
from tokenmill.faults import fault_point
from tokenmill.manifests.storage import traffic
from tokenmill.pipelines.deadlines import raised_deadline
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.jobs import Job, JobResult, Worker, found_result

log = logging.getLogger(__name__)
Deadline = Callable[[], AbstractContextManager[None]]
FATAL = (MemoryError, ImportError, RunError)  # no other try would end better


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that ended: its result, or the error that ended it; `fatal` ones end the run (a wrong path, no memory).

    Attributes:
        index: of the job among those that were handed out together.
        wall_s, cpu_s: of this job, in the worker and its children.
        traffic: requests, bytes and retries of the store, see `tokenmill.manifests.storage.traffic`.
        worker: host and process; `started`: when the job began there, seconds since 1970.
    """

    index: int
    result: JobResult | None = None
    error: str = ""
    fatal: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    traffic: Mapping[str, int] = field(default_factory=dict)
    worker: str = ""
    started: float = 0.0


def run_one(work: Callable[[], JobResult], index: int, job: Job, deadline: Deadline) -> Finished:
    """Do one job, unless its records are there, and report how it ended."""
    wall, cpu, before, started = time.perf_counter(), cpu_seconds(), traffic(), time.time()
    result, error, fatal = None, "", False
    try:
        with deadline():
            fault_point(f"unit:{job.unit.name}")
            result = found_result(job) or work()
    except Exception as problem:
        log.debug("unit %s", job.unit.name, exc_info=True)
        error, fatal = told(problem), isinstance(problem, FATAL)
    return Finished(
        index=index,
        result=result,
        error=error,
        fatal=fatal,
        wall_s=time.perf_counter() - wall,
        cpu_s=cpu_seconds() - cpu,
        traffic=asdict(traffic() - before),
        worker=worker_name(),
        started=started,
    )


def failed(error: BaseException, index: int) -> Finished:
    """Report a job that ended outside `run_one`."""
    return Finished(
        index=index, error=told(error), fatal=isinstance(error, FATAL), worker=worker_name(), started=time.time()
    )


def run_inline(
    make_worker: Callable[[], Worker], jobs: Sequence[Job], *, unit_timeout_s: float, drain: Drain
) -> Generator[Finished]:
    """Do the jobs one after the other in this process, until asked to end."""
    worker = make_worker()
    try:
        for index, job in enumerate(jobs):
            if drain.asked:
                return
            yield run_one(lambda job=job: worker(job), index, job, lambda: raised_deadline(unit_timeout_s))  # type: ignore[misc]
    finally:
        worker.close()


def worker_name() -> str:
    """Name this process among all machines."""
    return f"{socket.gethostname()}:{os.getpid()}"


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children so far, those that still run (decoders) included."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _running_children_s()


def _running_children_s() -> float:
    """Return the CPU time of children that nobody has waited for; 0 where the system has no /proc."""
    seconds = 0.0
    for thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # ends just now
            for child in thread.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_bytes().rpartition(b")")[2].split()
                seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own and its children's
    return seconds


def told(error: BaseException) -> str:
    if isinstance(error, TokenmillError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
