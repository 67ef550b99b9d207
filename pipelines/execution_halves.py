"""A stage as two Ray Data operators: decoding on CPUs anywhere, the models where the devices are.

For a model that eats faster than its node can decode (CLIP at 224 pixels sees some thousand pictures a second, a core
decodes a hundred). Only chunks of resized pixels cross, never a full-size picture; the small parts that come back are
put together by unit and committed by the driver. A unit that lacks a part at the end is lost as a whole.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from tokenmill.faults import fault_point
from tokenmill.pipelines.deadlines import fatal_deadline, raised_deadline
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.execution import Finished, failed, run_one, worker_name
from tokenmill.pipelines.execution_ray import Clock, PassLimits, begin, collected, mapped, one_block_each
from tokenmill.pipelines.jobs import HalvedWorker, Job, JobResult, Workers, found_result
from tokenmill.pipelines.ray_cluster import RayPool, start_ray
from tokenmill.pipelines.ray_desk import Desk, Place, in_hand, this_place

_CHUNK, _LAST, _FINISHED, _NOT_BEGUN = "chunk", "last", "finished", "not begun"
_DECODING, _MODELS = "decode", "models"
Row = dict[str, list[Any]]  # columns of one row: index of the job, number of the chunk, kind, body


def run_in_halves(
    make_workers: Callable[[], Workers], jobs: Sequence[Job], pool: RayPool, limits: PassLimits, drain: Drain
) -> Generator[Finished]:
    """Do the jobs on two pools of Ray actors; results come as their last part comes."""
    assert pool.decode is not None
    start_ray(pool)
    desk, makers = Desk(), pickle.dumps(make_workers)
    rows = [{"index": index, "job": pickle.dumps(job)} for index, job in enumerate(jobs)]
    prepared = mapped(
        one_block_each(rows),
        _Prepare,
        (makers, desk.handle, limits.unit_timeout_s),
        pool.decode,
        len(jobs),
        limits.queued,
    )
    arguments = (makers, desk.handle, limits.unit_timeout_s)
    computed = mapped(prepared, _Compute, arguments, pool, pool.workers, limits.queued)
    clock = Clock(desk, {_DECODING: pool.decode, _MODELS: pool}, limits, drain)
    yield from collected(computed, _Assembly(make_workers(), jobs, limits.unit_timeout_s).add, clock)


class _Prepare:
    """The first actor: decodes a unit and yields its chunks, then how many they were."""

    def __init__(self, make_workers: bytes, desk: Any, timeout_s: float) -> None:
        self._make, self._desk, self._timeout_s = make_workers, desk, timeout_s
        self._workers: Workers | None = None

    def __call__(self, batch: dict[str, Any]) -> Iterator[Row]:
        index = int(batch["index"][0])
        if not begin(self._desk, index, _DECODING):
            yield _row(index, _NOT_BEGUN, 0, None)
            return
        number = 0
        try:
            job = pickle.loads(batch["job"][0])
            fault_point(f"unit:{job.unit.name}")
            found = found_result(job)
            if found is not None:
                yield _row(index, _FINISHED, 0, Finished(index=index, result=found))
                return
            chunks = self._worker(job).prepare(job)
            while (chunk := self._next(index, chunks)) is not None:
                yield _row(index, _CHUNK, number, (job.work, job.unit.name, chunk))
                number += 1
            yield _row(index, _LAST, number, None)
        except Exception as error:
            yield _row(index, _FINISHED, 0, failed(error, index))

    def _next(self, index: int, chunks: Iterator[Any]) -> Any:
        """Return the next chunk; the time limit is a chunk's, for waiting for the models is nobody's fault here."""
        with in_hand(self._desk, index, self._place, _DECODING), fatal_deadline(self._timeout_s):
            return next(chunks, None)

    @cached_property
    def _place(self) -> Place:
        return this_place(worker_name())

    def _worker(self, job: Job) -> HalvedWorker:
        if self._workers is None:
            self._workers = pickle.loads(self._make)()
        return cast(HalvedWorker, self._workers.worker(job.work))


class _Compute:
    """The second actor: turns chunks into parts; whatever else comes passes through."""

    def __init__(self, make_workers: bytes, desk: Any, timeout_s: float) -> None:
        self._make, self._desk, self._timeout_s = make_workers, desk, timeout_s
        self._place = this_place(worker_name())
        self._workers: Workers | None = None
        desk.arrive.remote(_MODELS)  # its first chunk comes with a block of 64 MiB: minutes, where decoding is slow

    def __call__(self, batch: dict[str, Any]) -> Row:
        index, kind, number = int(batch["index"][0]), str(batch["kind"][0]), int(batch["number"][0])
        if kind != _CHUNK:
            return {name: list(column) for name, column in batch.items()}
        try:
            with in_hand(self._desk, index, self._place, _MODELS), fatal_deadline(self._timeout_s):
                work, unit, chunk = pickle.loads(batch["body"][0])
                fault_point(f"model:{unit}")
                if self._workers is None:
                    self._workers = pickle.loads(self._make)()
                part = cast(HalvedWorker, self._workers.worker(work)).compute(chunk)
        except Exception as error:
            return _row(index, _FINISHED, 0, failed(error, index))
        return _row(index, _CHUNK, number, part)


@dataclass
class _Parts:
    """The parts of one unit that have come so far, and how many there will be."""

    found: dict[int, Any] = field(default_factory=dict)
    wanted: int | None = None


class _Assembly:
    """Puts units together again and commits them, in the driver."""

    def __init__(self, workers: Workers, jobs: Sequence[Job], timeout_s: float) -> None:
        self._workers, self._jobs, self._timeout_s = workers, jobs, timeout_s
        self._open: dict[int, _Parts] = {}
        self._over: set[int] = set()  # failed in one chunk: the others that still come are of no use

    def add(self, row: dict[str, Any]) -> Finished | None:
        """Take in one row; returns the unit that it completes, or None."""
        index, kind = int(row["index"]), row["kind"]
        if kind == _NOT_BEGUN or index in self._over:
            return None
        if kind == _FINISHED:
            self._over.add(index)
            self._open.pop(index, None)
            return cast(Finished, pickle.loads(row["body"]))
        parts = self._open.setdefault(index, _Parts())
        if kind == _LAST:
            parts.wanted = int(row["number"])
        else:
            parts.found[int(row["number"])] = pickle.loads(row["body"])
        if parts.wanted is None or len(parts.found) < parts.wanted:
            return None
        return self._completed(index, [part for _, part in sorted(self._open.pop(index).found.items())])

    def _completed(self, index: int, parts: Sequence[Any]) -> Finished:
        job = self._jobs[index]
        worker = cast(HalvedWorker, self._workers.worker(job.work))

        def complete() -> JobResult:
            return worker.complete(job, parts)

        finished = run_one(complete, index, job, lambda: raised_deadline(self._timeout_s))
        seconds = sum(finished.result.seconds.values()) if finished.result else 0.0
        return replace(finished, wall_s=seconds, cpu_s=max(finished.cpu_s, seconds))  # the halves' own, summed up


def _row(index: int, kind: str, number: int, body: Any) -> Row:
    return {"index": [index], "kind": [kind], "number": [number], "body": [pickle.dumps(body, protocol=5)]}
