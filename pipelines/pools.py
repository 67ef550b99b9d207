"""The pool of each stage, from the recipe: what a stage does not say comes from `execution` itself. Pure functions."""

from __future__ import annotations

import math
from typing import get_args

from tokenmill.pipelines.ray_cluster import RayPool, WorkerPool
from tokenmill.recipe import Execution, Pooled, StagePool, Workers

POOLED: tuple[str, ...] = get_args(Pooled)

_FEW_ROWS = 1_000_000


def stage_pool(run: Execution, stage: str) -> RayPool:
    """Return the pool of a stage; a cluster started on this machine is sized for the largest one of the recipe."""
    pools = [_pool(run, run.pools.get(name) or StagePool()) for name in POOLED]  # type: ignore[call-overload]
    own = _pool(run, run.pools.get(stage) or StagePool())  # type: ignore[call-overload]
    return RayPool(
        workers=own.workers,
        cpus=own.cpus,
        gpus=own.gpus,
        memory_gb=own.memory_gb,
        address=run.address,
        decode=own.decode,
        cluster_cpus=max(math.ceil(pool.all_cpus) for pool in pools),
    )


def _pool(run: Execution, said: StagePool) -> RayPool:
    models = _workers(said, WorkerPool(workers=run.workers, cpus=run.cpus_per_worker, gpus=run.gpus_per_worker))
    decode = _workers(said.decode, WorkerPool(workers=run.workers)) if said.decode else None
    return RayPool(
        workers=models.workers, cpus=models.cpus, gpus=models.gpus, memory_gb=models.memory_gb, decode=decode
    )


def _workers(said: Workers, otherwise: WorkerPool) -> WorkerPool:
    return WorkerPool(
        workers=otherwise.workers if said.workers is None else said.workers,
        cpus=otherwise.cpus if said.cpus is None else said.cpus,
        gpus=otherwise.gpus if said.gpus is None else said.gpus,
        memory_gb=otherwise.memory_gb if said.memory_gb is None else said.memory_gb,
    )


def is_worth_a_pool(run: Execution, stage: str, num_rows: int) -> bool:
    """Tell whether a query over so many rows runs on a pool of Ray's: many rows, or a pool that the recipe names.

    A pool takes 4 to 8 s to start, and a comparison starts several; a million rows take less than that here.
    """
    return run.executor == "ray" and (stage in run.pools or num_rows > _FEW_ROWS)
