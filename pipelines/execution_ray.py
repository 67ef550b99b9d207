"""A pass over jobs as a Ray Data job: one row and one block a unit, a small row back.

The row that comes back holds counts and digests, so the object store stays empty whatever the samples weigh. Ray Data
may lose a unit with its worker or node but never retries it by itself: its retries know nothing of poison, of deadlines
or of what is on disk already. What did not come back is the caller's to hand out again.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import RunError
from tokenmill.pipelines.deadlines import fatal_deadline
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.execution import Finished, failed, run_one, worker_name
from tokenmill.pipelines.jobs import Job, JobResult, Worker
from tokenmill.pipelines.ray_cluster import RayPool, WorkerPool, start_ray
from tokenmill.pipelines.ray_desk import Desk, DeskState, this_place

log = logging.getLogger(__name__)
_GRACE = 1.25  # times the deadline at which a worker ends itself: only what is frozen is still there then
_LOOK_EVERY_S = 2.0
ENDED = object()
_UNITS = "whole units"  # the one pool's role
Assemble = Callable[[dict[str, Any]], Finished | None]  # a row -> the unit it completes, if it does


@dataclass(frozen=True, kw_only=True)
class PassLimits:
    """How long a pass waits for a unit and for the first worker; `queued`: units a worker holds."""

    unit_timeout_s: float
    start_timeout_s: float
    queued: int = 2


def run_on_ray(
    make_worker: Callable[[], Worker], jobs: Sequence[Job], pool: RayPool, limits: PassLimits, drain: Drain
) -> Generator[Finished]:
    """Do the jobs on a pool of Ray actors; results come as they finish, lost units that were begun at the end.

    Raises:
        RunError: no worker began within `start_timeout_s`, for want of resources as a rule.
    """
    start_ray(pool)
    desk = Desk()
    rows = [{"index": index, "job": pickle.dumps(job)} for index, job in enumerate(jobs)]
    arguments = (pickle.dumps(make_worker), desk.handle, limits.unit_timeout_s)
    dataset = mapped(one_block_each(rows), WholeUnits, arguments, pool, len(jobs), limits.queued)
    yield from collected(dataset, _whole, Clock(desk, {_UNITS: pool}, limits, drain))


def _whole(row: dict[str, Any]) -> Finished | None:
    return pickle.loads(row["finished"]) if row["finished"] else None


def one_block_each(rows: Sequence[dict[str, Any]]) -> Any:
    """Return a dataset in which every row travels and is lost by itself; its blocks stay below 64 MiB."""
    import ray

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a lost unit is ours to hand out again, not the end of the pass
    context.target_max_block_size = 64 * 2**20
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


def mapped(dataset: Any, kind: type, arguments: tuple[Any, ...], pool: WorkerPool, most: int, queued: int) -> Any:
    """Apply an actor class to a dataset's rows one by one; dead actors come back, their tasks do not."""
    from ray.data import ActorPoolStrategy

    size = min(pool.workers, most)
    with warnings.catch_warnings():
        # Ray 2.60 has no other way yet to bound the retries of a Data actor pool, and calls this one deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            kind,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=queued),
            **pool.reserved,
            max_restarts=-1,
            max_task_retries=0,
        )


def collected(dataset: Any, assemble: Assemble, clock: Clock) -> Generator[Finished]:
    """Yield what `assemble` makes of a dataset's rows, then an error for every unit that was begun and lost."""
    try:
        yield from _collected(dataset, assemble, clock)
    finally:
        clock.desk.close()  # whoever stops listening wants nothing more begun


def _collected(dataset: Any, assemble: Assemble, clock: Clock) -> Generator[Finished]:
    found = in_background(dataset)
    returned: set[int] = set()
    while not clock.settled:
        try:
            row = found.get(timeout=1.0)
        except queue.Empty:
            clock.look(returned)
            continue
        if row is ENDED:
            break
        if isinstance(row, BaseException):
            raise RunError(f"Ray: {last_line(row)}") from row
        finished = assemble(row)
        if finished is not None:
            returned.add(finished.index)
            yield finished
        clock.look(returned)
    if clock.draining:
        return
    yield from lost_units(clock.desk.state(), returned)


def lost_units(state: DeskState, returned: set[int]) -> Generator[Finished]:
    """Yield an error for every unit that was begun and lost: blame is for whoever held it to the end, and nobody else.

    The others went with somebody else's worker or node: a chunk in a dead model worker's queue, an answer on its way.
    """
    held = {hand.index for hand in state.hands}
    for index, place in sorted(state.begun.items()):
        if index not in returned:
            died = f"its worker died or was stopped ({place.name})"
            error = died if index in held else f"lost on its way from {place.name}, with another worker or a node"
            yield Finished(index=index, error=error, worker=place.name)


class Clock:
    """Looks now and then: has anybody of each pool begun, does a frozen worker hold a unit, is the run to end.

    `pools` are those of the operators, in order: a later one can begin only when the first has laid something down.
    `settled` says that a run asked to end has nothing in flight any more.
    """

    def __init__(self, desk: Desk, pools: Mapping[str, WorkerPool], limits: PassLimits, drain: Drain) -> None:
        self.desk, self._pools, self._limits, self._drain = desk, pools, limits, drain
        self._looked = time.monotonic()
        self._waiting_since = {next(iter(pools)): self._looked}
        self._closed = self.settled = False

    @property
    def draining(self) -> bool:
        return self._drain.asked

    def look(self, returned: set[int]) -> None:
        if self._drain.asked and not self._closed:
            self._closed = True
            self.desk.close()
        if self._drain.over:
            raise KeyboardInterrupt
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        state = self.desk.state()
        self._check_started(state)
        self.desk.kill_overdue(state, returned, self._limits.unit_timeout_s * _GRACE)
        self.settled = self._closed and returned.issuperset(state.begun)

    def _check_started(self, state: DeskState) -> None:
        for role, pool in self._pools.items():
            if state.offered:
                self._waiting_since.setdefault(role, self._looked)
            waited_s = self._looked - self._waiting_since.get(role, self._looked)
            if role not in state.begun_roles and waited_s > self._limits.start_timeout_s:
                raise RunError(nobody_began(role, pool, self._limits.start_timeout_s))


def nobody_began(role: str, pool: WorkerPool, waited_s: float) -> str:
    import ray

    wants = ", ".join(f"{name} {value:g}" for name, value in pool.reserved.items() if value)
    has = ", ".join(f"{name} {value:g}" for name, value in sorted(ray.cluster_resources().items()) if ":" not in name)
    return (
        f"no worker began within {waited_s:g} s: each of {pool.workers} ({role}) wants {wants}; the cluster has {has}; "
        "lower execution.pools or add nodes"
    )


def in_background(dataset: Any) -> queue.Queue[Any]:
    """Iterate in a thread, because Ray Data's iterator cannot be asked with a time-out."""
    found: queue.Queue[Any] = queue.Queue()

    def iterate() -> None:
        try:
            for row in dataset.iter_rows():
                found.put(row)
        except BaseException as error:
            found.put(error)
        found.put(ENDED)

    threading.Thread(target=iterate, name="ray-data", daemon=True).start()
    return found


class WholeUnits:
    """The actor: builds its worker with its first unit (an error there is that unit's), then does one a call."""

    def __init__(self, make_worker: bytes, desk: Any, unit_timeout_s: float) -> None:
        self._make, self._desk, self._timeout_s = make_worker, desk, unit_timeout_s
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        index = int(batch["index"][0])
        if not begin(self._desk, index, _UNITS):
            return {"finished": [b""]}
        finished = self._finished(index, batch["job"][0])
        return {"finished": [pickle.dumps(finished)]}

    def _finished(self, index: int, packed: bytes) -> Finished:
        try:
            job = pickle.loads(packed)
        except Exception as error:  # this node has another tokenmill, or lacks a library
            return failed(error, index)
        place = this_place(worker_name())

        def deadline() -> AbstractContextManager[None]:
            return fatal_deadline(self._timeout_s, on_renewal=lambda: self._desk.renew.remote(place))

        return run_one(lambda: self._work(job), index, job, deadline)

    def _work(self, job: Job) -> JobResult:
        if self._worker is None:
            self._worker = pickle.loads(self._make)()
        return self._worker(job)


def begin(desk: Any, index: int, role: str) -> bool:
    """Tell the desk that this process begins a unit; False when it must not."""
    import ray

    return bool(ray.get(desk.begin.remote(index, this_place(worker_name()), role)))


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
