"""How jobs are carried out: in this process, or as a Ray Data job over unit descriptors.

Both give the same files. With Ray a unit is one row and one block; the row that comes back holds counts and digests, so
the object store stays empty whatever the samples weigh. Ray's own retries are bounded here, because its actor pools
would otherwise try a poison unit for ever; what comes back is compared by the runner with what was asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RunError, TokenmillError
from tokenmill.pipelines.jobs import Job, JobResult, Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that ended: its result, or the error that ended it; `fatal` ones end the run (a wrong path, no memory)."""

    index: int
    result: JobResult | None = None
    error: str = ""
    fatal: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0


def run_one(worker: Worker, index: int, job: Job) -> Finished:
    """Do one job and report how it ended, with its wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    try:
        result = worker(job)
    except (MemoryError, ImportError, RunError) as error:
        return Finished(index=index, error=_told(error), fatal=True)
    except Exception as error:
        log.debug("unit %s", job.unit.name, exc_info=True)
        return Finished(index=index, error=_told(error))
    return Finished(index=index, result=result, wall_s=time.perf_counter() - wall, cpu_s=_cpu_seconds() - cpu)


def run_inline(make_worker: Callable[[], Worker], jobs: Sequence[Job]) -> Iterator[Finished]:
    """Do the jobs one after the other in this process."""
    worker = make_worker()
    try:
        for index, job in enumerate(jobs):
            yield run_one(worker, index, job)
    finally:
        worker.close()


@dataclass(frozen=True, kw_only=True)
class RayPool:
    """A fixed pool of workers; `cpus` and `gpus` are what each one reserves."""

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None


def run_on_ray(make_worker: Callable[[], Worker], jobs: Sequence[Job], pool: RayPool) -> Iterator[Finished]:
    """Do the jobs on a pool of Ray actors; results come as they finish."""
    import ray
    from ray.data import ActorPoolStrategy

    start_ray(pool)
    rows = [{"index": index, "job": pickle.dumps(job)} for index, job in enumerate(jobs)]
    with warnings.catch_warnings():
        # Ray 2.60 has no other way yet to bound the retries of a Data actor pool, and calls this one deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _RayWorker,
            fn_constructor_args=(pickle.dumps(make_worker),),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(pool.workers, len(jobs)), max_tasks_in_flight_per_actor=2),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            **_BOUNDED_RETRIES,
        )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["finished"])
    except ray.exceptions.RayError as error:
        log.warning("Ray gave up on a worker (%s); what it left undone is handed out again", _last_line(error))


_JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_BOUNDED_RETRIES = {"max_restarts": 3, "max_task_retries": 3}


def start_ray(pool: RayPool) -> None:
    """Connect to a cluster, or start a small one here: no dashboard, as many CPUs as the pool wants."""
    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Without this, Ray warns on every actor that it will one day leave CUDA_VISIBLE_DEVICES alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = pool.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:  # workers of a cluster started here inherit this process's environment
        cpus = max(1, round(pool.workers * pool.cpus))
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 256 * 2**20}
    elif _JOB_ENVIRONMENT not in os.environ:  # a submitted job brings its own, and Ray refuses a second
        options["runtime_env"] = {"env_vars": _forwarded()}
    with _native_stderr_closed():
        ray.init(address=address, **options)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Drop what native code prints: Ray's core says in a line of its own that it was told to be quiet."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def stop_ray() -> None:
    """Let go of the local cluster, if one was started."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


class _RayWorker:
    """The actor: builds its worker once, then does one job a call."""

    def __init__(self, make_worker: bytes) -> None:
        self._worker: Worker = pickle.loads(make_worker)()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        finished = [
            pickle.dumps(run_one(self._worker, int(index), pickle.loads(job)))
            for index, job in zip(batch["index"], batch["job"], strict=True)
        ]
        return {"finished": finished}


def _forwarded() -> dict[str, str]:
    """Return the environment that workers need: credentials, fault points, one thread each for the maths libraries."""
    wanted = {name: value for name, value in os.environ.items() if name.startswith(("TOKENMILL_", "AWS_", "FSSPEC_"))}
    wanted["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    return wanted


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _told(error: BaseException) -> str:
    if isinstance(error, TokenmillError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
