"""One rank of a run that reads a plan and trains nothing, to be killed at any moment and started again.

It does with the loader what the trainer does: goes on from the published state, takes its part of every step, writes
down what it read, waits for the other ranks, and rank 0 publishes the state atomically. It is forked from a server that
has imported the loader already (`multiprocessing`'s forkserver), which makes some fifty processes affordable.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numba
import numpy as np

from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.vocabulary import build_vocabulary
from tokenmill.train.loader import PlanLoader, Step
from tokenmill.train.packs import PackArrays

STEP_S = 0.008  # what a model would take
numba.njit(lambda number: number + 1)(1)  # loads numba's own tables (0.5 s) once, before the ranks are forked


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a run is started, this time."""

    number: int
    root: str
    plan: str
    run: Path  # the run's folder: the state, and a file of rows a rank and launch
    global_packs: int
    world: int
    threads: int
    micro_packs: int
    read_ahead_steps: int

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    def rows(self, rank: int) -> Path:
        return self.run / f"launch-{self.number:02d}.rank-{rank}.jsonl"

    def open(self) -> Plan:
        return open_plan(open_store(self.root), self.plan)


def loader_of(launch: Launch, plan: Plan, rank: int) -> PlanLoader:
    return PlanLoader(
        plan,
        build_vocabulary(plan.description["vocabulary"]),
        global_packs=launch.global_packs,
        rank=rank,
        world=launch.world,
        micro_packs=launch.micro_packs,
        threads=launch.threads,
        read_ahead_steps=launch.read_ahead_steps,
    )


def step_reached(launch: Launch, loader: PlanLoader) -> int:
    """The step to go on with: that of the published checkpoint, which is a loader's state and an optimizer's step."""
    if not launch.state.exists():
        return 0
    checkpoint = json.loads(launch.state.read_text())
    step = loader.step_of(checkpoint["loader"])
    assert step == checkpoint["optimizer_step"]
    assert len(json.dumps(checkpoint["loader"])) <= 1024
    return step


def run_rank(launch: Launch, rank: int, barrier: Barrier) -> None:
    """Go on to the end of the epoch."""
    loader = loader_of(launch, launch.open(), rank)
    start = step_reached(launch, loader)
    barrier.wait()  # nobody publishes before all have read where to go on
    with launch.rows(rank).open("w", encoding="utf-8") as rows:
        for step in loader.steps(start, loader.steps_per_epoch):
            rows.write(json.dumps(row_of(step)) + "\n")
            rows.flush()
            time.sleep(STEP_S)
            barrier.wait()
            if rank == 0:
                _publish(launch.state, loader.state(step.number + 1).to_json(), step.number + 1)


def row_of(step: Step) -> dict[str, Any]:
    """What a rank read in a step: the samples, and a checksum of every document as the model gets it."""
    samples = [asdict(sample) for sample in step.samples]
    checksums = [_checksum(document) for arrays in step.micro_batches for document in _documents(arrays)]
    return {"step": step.number, "samples": samples, "checksums": checksums, "weight": step.weight}


def _documents(arrays: PackArrays) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut a micro-batch at its borders; padding at the end of a pack depends on who has which pack, and is left out."""
    columns = (arrays.input_ids, arrays.labels, arrays.loss_weight, arrays.position_ids)
    for start, end in zip(arrays.cu_seqlens[:-1], arrays.cu_seqlens[1:], strict=True):
        document = tuple(column[start:end] for column in columns)
        if np.any(document[0] != document[0][0]):
            yield document


def _checksum(document: tuple[np.ndarray, ...]) -> int:
    checksum = 0
    for column in document:
        checksum = zlib.crc32(np.ascontiguousarray(column), checksum)
    return checksum


def _publish(path: Path, state: dict[str, Any], step: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"loader": state, "optimizer_step": step}), encoding="utf-8")
    part.replace(path)
