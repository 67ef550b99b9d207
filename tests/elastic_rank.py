"""One rank of a run that reads a plan and trains nothing, to be killed at any moment and started again.

It does with the loader what the trainer does: goes on from the published state, takes its part of every step, writes
down what it read, waits for the other ranks, and rank 0 publishes the state atomically. Some launches read through the
stream for torch, alone or in a DataLoader's worker processes. All are forked from a server that has loaded the compiled
code already (`tests/warm_compiler.py`; 0.1 s of CPU instead of 1.5), which makes some fifty processes affordable.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.settings_loader import LoaderSettings
from tokenmill.tokenize.vocabulary import build_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.stream import PlanStream
from tokenmill.train.stream_workers import WorkerStream

STEP_S = 0.008  # what a model would take
COLUMNS = ("input_ids", "labels", "loss_weight", "position_ids")
Way = Literal["loader", "stream", "workers"]


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
    way: Way = "loader"  # of reading: the loader's steps, the stream for torch, or that in as many workers as threads

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
    read = _steps(loader, start) if launch.way == "loader" else _streamed(launch, loader, start)
    barrier.wait()  # nobody publishes before all have read where to go on
    with launch.rows(rank).open("w", encoding="utf-8") as rows:
        for number, (row, state) in enumerate(read, start):
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            time.sleep(STEP_S)
            barrier.wait()
            if rank == 0:
                _publish(launch.state, state, number + 1)


Read = Iterator[tuple[dict[str, Any], dict[str, Any]]]


def _steps(loader: PlanLoader, start: int) -> Read:
    """Yield what is read in each step, and the state behind it."""
    for step in loader.steps(start, loader.steps_per_epoch):
        arrays = [{name: getattr(one, name) for name in (*COLUMNS, "cu_seqlens")} for one in step.micro_batches]
        yield _row(step.number, list(map(asdict, step.samples)), arrays), loader.state(step.number + 1).to_json()


def _streamed(launch: Launch, loader: PlanLoader, start: int) -> Read:
    """Do the same through the stream, which tells no samples: those are the loader's, the checksums are its own."""
    shape = {name: getattr(loader, name) for name in ("global_packs", "rank", "world", "micro_packs")}
    settings = LoaderSettings(threads=launch.threads, read_ahead_steps=launch.read_ahead_steps)
    stream = PlanStream(loader.plan, loader.vocabulary, settings=settings, **shape)
    stream.load_state_dict(loader.state(start).to_json())
    batches: PlanStream | WorkerStream = stream
    if launch.way == "workers":
        ends = partial(_end_with, os.getpid())
        batches = WorkerStream(stream, launch.threads, multiprocessing_context="forkserver", worker_init_fn=ends)
    arrays: list[dict[str, Any]] = []
    for batch in batches:
        arrays.append({name: batch[name].numpy() for name in (*COLUMNS, "cu_seqlens")})  # type: ignore[literal-required]
        if batch["micro_step"] == batch["micro_steps"] - 1:
            samples = loader.step(batch["step"]).samples
            yield _row(batch["step"], list(map(asdict, samples)), arrays), dict(batches.state_dict())
            arrays = []


def _end_with(rank_pid: int, _worker: int) -> None:
    """End this worker when its rank was killed: torch looks at the parent process, which is a forkserver here."""

    def watch(descriptor: int) -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    try:
        descriptor = os.pidfd_open(rank_pid)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=watch, args=(descriptor,), daemon=True).start()


def _row(step: int, samples: list[dict[str, Any]], micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Tell what a rank read in a step: the samples, and a checksum of every document as the model gets it."""
    checksums = [_checksum(document) for arrays in micro_batches for document in _documents(arrays)]
    return {"step": step, "samples": samples, "checksums": checksums}


def _documents(arrays: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut a micro-batch at its borders; padding at the end of a pack depends on who has which pack, and is left out."""
    borders = arrays["cu_seqlens"]
    for start, end in pairwise(borders):
        document = tuple(arrays[name][start:end] for name in COLUMNS)
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
