"""Megatron-Energon: tars of one member a sample, indexed by `energon prepare`; no decoder, one pass, no shuffle."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.archives import MEMBER, unpacked, write_tars
from benchmarks.loader_peers.delivery import (
    PACKS_AT_ONCE,
    SAMPLES_AT_ONCE,
    Epoch,
    joined,
    separate,
    stacked,
    taken_apart,
)
from benchmarks.loader_peers.packing import Sample, first_fit

DISTRIBUTION = "megatron-energon"
SETTINGS = {"one shard at a time": 1, "sixteen shards in turn": 16}


@dataclass(frozen=True)
class Batch:
    """Samples in a wrapping that torch's DataLoader leaves alone; it would make tensors of arrays."""

    samples: list[Sample]


def write(source: Path, folder: Path) -> None:
    write_tars(source, folder)
    prepare = (
        "prepare", "--non-interactive", "--no-progress", "--num-workers", "1", "--split-ratio", "1,0,0",
        "--sample-type", "CrudeWebdataset", str(folder),
    )  # fmt: skip
    subprocess.run([Path(sys.executable).parent / "energon", *prepare], check=True, stdout=subprocess.DEVNULL)


def open_epoch(folder: Path, setting: str, workers: int, way: str) -> Epoch:
    """Give an epoch through Energon's own loader, which wants to make the batches itself."""
    from megatron.energon import WorkerConfig, get_loader, get_train_dataset

    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=SAMPLES_AT_ONCE,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        parallel_shard_iters=SETTINGS[setting],
        task_encoder=_encoder(way if workers else "alone"),
        repeat=False,
    )
    loader = get_loader(dataset, prefetch_factor=4, watchdog_timeout_seconds=None)
    if not workers:
        return Epoch(lambda: first_fit(sample for many in loader for sample in many.samples))
    if way == "packs":
        return Epoch(lambda: (pack for many in loader for one in many for pack in separate(one)))
    return Epoch(lambda: first_fit(sample for many in loader for sample in taken_apart(many)))


def _encoder(way: str) -> Any:
    from megatron.energon import Cooker, DefaultTaskEncoder, stateless

    @stateless
    def cook(raw: dict[str, Any]) -> Any:
        return raw

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (Cooker(cook),)
        decoder = None

        @stateless
        def batch(self, samples: list[Any]) -> Any:
            arrays = [unpacked(sample[MEMBER]) for sample in samples]
            return {"alone": lambda: Batch(arrays), "samples": lambda: joined(arrays), "packs": lambda: _packs(arrays)}[
                way
            ]()

    return Encoder()


def _packs(samples: list[Sample]) -> list[Any]:
    packs = list(first_fit(samples))
    return [stacked(packs[at : at + PACKS_AT_ONCE]) for at in range(0, len(packs), PACKS_AT_ONCE)]
