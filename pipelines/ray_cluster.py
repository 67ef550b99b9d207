"""Connecting to a Ray cluster, or starting a small quiet one on this machine.

Ray is told to be quiet: it prints through four channels of its own, and a user of tokenmill should read one log. A
cluster started here costs 5 to 10 seconds, so a stage that has nothing to do never gets here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenmill.pipelines.shipment import forwarded

_JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """A fixed number of equal processes, and what each one reserves (`memory_gb`: GiB)."""

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float | None = None

    @property
    def reserved(self) -> dict[str, float]:
        """Return what one process reserves, in Ray's own words."""
        memory = {} if self.memory_gb is None else {"memory": self.memory_gb * 2**30}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory}


@dataclass(frozen=True, kw_only=True)
class RayPool(WorkerPool):
    """The pool of a stage; with `decode` the stage runs as two operators, and this one holds the models."""

    address: str | None = None
    decode: WorkerPool | None = None
    cluster_cpus: int = 0  # of a cluster started here: what the largest stage of the recipe wants

    @property
    def all_workers(self) -> int:
        return self.workers + (self.decode.workers if self.decode else 0)

    @property
    def all_cpus(self) -> float:
        return self.workers * self.cpus + (self.decode.workers * self.decode.cpus if self.decode else 0.0)


def start_ray(pool: RayPool) -> None:
    """Connect to a cluster, or start a small one here: no dashboard, as many CPUs as the pool wants."""
    import ray

    if ray.is_initialized():
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = pool.address or os.environ.get("RAY_ADDRESS")
    for name, value in (_QUIET | (_ALONE if address is None else {})).items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:  # workers of a cluster started here inherit this process's environment
        options |= {
            "num_cpus": max(1, pool.cluster_cpus, math.ceil(pool.all_cpus)),
            "include_dashboard": False,
            "object_store_memory": 256 * 2**20,
        }
    elif _JOB_ENVIRONMENT not in os.environ:  # a submitted job brings its own, and Ray refuses a second
        options["runtime_env"] = {"env_vars": _for_workers()}
    with _native_stderr_closed(), _own_sigterm():
        # Without an address Ray would join whatever cluster another process of this machine has started.
        ray.init(address=address or "local", **options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Only now: its import sets levels of its own. A lost unit is told by us, in one line and without a traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our handler: Ray sets one that exits with code 15, and nothing would drain."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def stop_ray() -> None:
    """Let go of the local cluster, if one was started."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


_ALONE = {"RAY_AUTH_MODE": "disabled"}  # a cluster of this process's own; any other says itself whom it lets in
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Without this, Ray warns on every actor that it will one day leave CUDA_VISIBLE_DEVICES alone.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def _for_workers() -> dict[str, str]:
    """Return the variables that workers on other machines get: Ray shows and logs them, so no credential is among them.

    One thread each for the maths libraries; the nodes' own credentials are the workers' (docs/cluster.md).
    """
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **forwarded(())}


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
