"""Jobs done at the same time by threads of this process: for stages that are queries over small tables.

Arrow, Polars, zstd, sha256 and the store let the interpreter go, so two cores do a selection in 0.6 of the time of one,
and a store that answers in 20 ms is waited for once and not a thousand times. A thread cannot be ended, so a unit has
no deadline here; what may hang is the store, which has time-outs of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, replace
from queue import SimpleQueue

from tokenmill.manifests.storage import Store, traffic
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.execution import Finished, cpu_seconds, run_one
from tokenmill.pipelines.jobs import Job, Worker

_QUEUED = 2  # units a thread: the next one waits here, the others with the caller
_POLL_S = 0.5  # how soon a wish to end is noticed
_FOR_REMOTE = 16


def available_cpus() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def query_threads(store: Store) -> int:
    """Return how many threads a query over tables is worth: one over the cores, more where a store is waited for."""
    return min(available_cpus() + 1, 8) if store.is_local else _FOR_REMOTE


def run_in_threads(
    make_worker: Callable[[], Worker], jobs: Sequence[Job], *, threads: int, drain: Drain
) -> Generator[Finished]:
    """Do jobs on threads, each with a worker of its own, in whatever order they end, until asked to end."""
    workers: SimpleQueue[Worker] = SimpleQueue()
    for _ in range(threads):
        workers.put(make_worker())

    def one(index: int) -> Finished:
        worker = workers.get()
        try:
            return run_one(lambda: worker(jobs[index]), index, jobs[index], nullcontext)
        finally:
            workers.put(worker)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="query")
    shares, waiting, following = _Shares(), set[Future[Finished]](), 0
    try:
        while waiting or following < len(jobs):
            while not drain.asked and following < len(jobs) and len(waiting) < _QUEUED * threads:
                waiting.add(pool.submit(one, following))
                following += 1
            if drain.asked:
                waiting = {future for future in waiting if not future.cancel()}
                if not waiting:
                    return
            done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                yield shares.taken(future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        while not workers.empty():
            workers.get().close()


class _Shares:
    """Charges each job with what the process used since the one before: threads share one account."""

    def __init__(self) -> None:
        self._cpu_s, self._traffic = cpu_seconds(), traffic()

    def taken(self, finished: Finished) -> Finished:
        cpu_s, moved = cpu_seconds(), traffic()
        used, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        exchanged, self._traffic = moved - self._traffic, moved
        return replace(finished, cpu_s=used, traffic=asdict(exchanged))
