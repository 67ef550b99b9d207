"""tokenmill itself: packs of a plan by threads of the training process; inside a torch DataLoader for the record.

Every epoch opens the plan anew and keeps nothing of the one before, neither tables nor joined documents.
"""

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
from tokenmill.settings_loader import LoaderSettings
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import PackArrays
from tokenmill.train.shard_bytes import StoreBytes

DISTRIBUTION = "tokenmill"
SETTINGS = {
    f"{packs} packs a step{', mapped' if memory_map else ''}": (packs, memory_map)
    for packs in (4, 8, 16, 64)
    for memory_map in (False, True)
}
IN_DATALOADER = "torch DataLoader"
_PACKS_IN_DATALOADER = 16


def write(source: Path, folder: Path) -> None:
    """Nothing: who calls has planned already."""


def open_epoch(folder: Path, setting: str, workers: int, way: str) -> Epoch:
    where = json.loads((folder.parent / "plan.json").read_text())
    if setting == IN_DATALOADER:
        steps = DataLoader(
            _Steps(where), batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=4,
            multiprocessing_context="forkserver",  # polars does not survive a fork
        )  # fmt: skip
        return Epoch(lambda: iter(steps))

    def arrays() -> Iterator[dict[str, Any]]:
        packs, memory_map = SETTINGS[setting]
        loader = open_loader(where, packs, memory_map, threads=workers, read_ahead_steps=4)
        for step in loader.steps(0, loader.steps_per_epoch):
            yield from map(arrays_of, step.micro_batches)

    return Epoch(arrays)


def open_loader(where: dict[str, str], global_packs: int, memory_map: bool = False, **options: Any) -> PlanLoader:
    store = open_store(where["root"])
    source = StoreBytes(store, settings=LoaderSettings(memory_map=memory_map))
    return PlanLoader(open_plan(store, where["plan"]), VOCABULARY, global_packs=global_packs, source=source, **options)


class _Steps(IterableDataset[Any]):
    """Whole steps, one worker after the other."""

    def __init__(self, where: dict[str, str]) -> None:
        self.where = where

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = open_loader(self.where, _PACKS_IN_DATALOADER, micro_packs=_PACKS_IN_DATALOADER)
        worker = get_worker_info()
        first, distance = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, loader.steps_per_epoch, distance):
            yield from map(tensors_of, loader.step(number).micro_batches)


def tensors_of(arrays: PackArrays) -> dict[str, Any]:
    """Tensors travel through shared memory, arrays would be pickled."""
    found = arrays_of(arrays)
    return {name: torch.from_numpy(value) if name != "num_tokens" else value for name, value in found.items()}


def arrays_of(arrays: PackArrays) -> dict[str, Any]:
    names = ("input_ids", "labels", "loss_weight", "position_ids", "cu_seqlens", "num_tokens")
    return {name: getattr(arrays, name) for name in names}
