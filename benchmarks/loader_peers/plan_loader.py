"""tokenmill itself: the plan's packs by threads of the training process, or inside a torch DataLoader for the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.delivery import Epoch
from benchmarks.loader_peers.packing import VOCABULARY
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.train.loader import PlanLoader

DISTRIBUTION = "tokenmill"
SETTINGS = {"threads": "threads", "torch DataLoader": "dataloader"}
GLOBAL_PACKS = 16


def write(source: Path, folder: Path) -> None:
    """Nothing: who calls has planned already."""


def open_epoch(folder: Path, setting: str, workers: int, way: str) -> Epoch:
    where = json.loads((folder.parent / "plan.json").read_text())
    plan = open_plan(open_store(where["root"]), where["plan"])
    if SETTINGS[setting] == "dataloader":
        return Epoch(_stream(plan, workers))
    loader = PlanLoader(plan, VOCABULARY, global_packs=GLOBAL_PACKS, threads=max(1, workers), read_ahead_steps=4)
    number = loader.steps_per_epoch

    def packs() -> Iterator[dict[str, Any]]:
        for step in loader.steps(0, number) if workers else map(loader.step, range(number)):
            yield from (arrays_of(arrays) for arrays in step.micro_batches)

    return Epoch(packs)


def arrays_of(arrays: Any) -> dict[str, Any]:
    names = ("input_ids", "labels", "loss_weight", "position_ids", "cu_seqlens", "num_tokens")
    return {name: getattr(arrays, name) for name in names}
