"""tokenmill itself: packs of a plan by threads of the training process; inside a torch DataLoader for the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.loader_peers.delivery import Epoch
from benchmarks.loader_peers.packing import VOCABULARY
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import PackArrays

DISTRIBUTION = "tokenmill"
SETTINGS = {"threads": "threads", "torch DataLoader": "dataloader"}
GLOBAL_PACKS = 16


def write(source: Path, folder: Path) -> None:
    """Nothing: who calls has planned already."""


def open_epoch(folder: Path, setting: str, workers: int, way: str) -> Epoch:
    where = json.loads((folder.parent / "plan.json").read_text())
    if SETTINGS[setting] == "dataloader":
        steps = DataLoader(
            _Steps(where), batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=4,
            multiprocessing_context="forkserver",  # polars does not survive a fork
        )  # fmt: skip
        return Epoch(lambda: iter(steps))
    loader = open_loader(where, threads=max(1, workers), read_ahead_steps=4)
    number = loader.steps_per_epoch

    def packs() -> Iterator[dict[str, Any]]:
        for step in loader.steps(0, number) if workers else map(loader.step, range(number)):
            yield from map(arrays_of, step.micro_batches)

    return Epoch(packs)


def open_loader(where: dict[str, str], **options: Any) -> PlanLoader:
    plan = open_plan(open_store(where["root"]), where["plan"])
    return PlanLoader(plan, VOCABULARY, global_packs=GLOBAL_PACKS, **options)


class _Steps(IterableDataset[Any]):
    """Whole steps, one worker after the other."""

    def __init__(self, where: dict[str, str]) -> None:
        self.where = where
        self.loader: PlanLoader | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.loader is None:
            self.loader = open_loader(self.where, micro_packs=GLOBAL_PACKS)
        worker = get_worker_info()
        first, distance = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, self.loader.steps_per_epoch, distance):
            yield from map(tensors_of, self.loader.step(number).micro_batches)


def tensors_of(arrays: PackArrays) -> dict[str, Any]:
    """Tensors travel through shared memory, arrays would be pickled."""
    found = arrays_of(arrays)
    return {name: torch.from_numpy(value) if name != "num_tokens" else value for name, value in found.items()}


def arrays_of(arrays: PackArrays) -> dict[str, Any]:
    names = ("input_ids", "labels", "loss_weight", "position_ids", "cu_seqlens", "num_tokens")
    return {name: getattr(arrays, name) for name in names}
