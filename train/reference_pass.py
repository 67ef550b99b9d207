"""Computing reference log-probabilities: the plan's packs once through the starting weights, on all ranks.

What is computed with is the engine itself before its first step, so the reference has the precision and the kernels of
the training that is held against it, and no second model is ever in memory.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of
from tokenmill.train.loader import PlanLoader
from tokenmill.train.model import Batch, PackedModel, named_parameters
from tokenmill.train.packs import PackArrays
from tokenmill.train.pair_places import PairPlaces, pair_places
from tokenmill.train.parameters import whole
from tokenmill.train.preference_loss import answer_log_probabilities
from tokenmill.train.reference import ReferenceFolder

log = logging.getLogger(__name__)

_TOLD_EVERY_S = 30.0


def weights_digest(engine: Any, model: PackedModel) -> str:
    """Return the digest of all weights in fp32, whichever ZeRO stage scattered them; every rank must call this."""
    found = []
    for name, parameter in named_parameters(model):
        tensor = whole(engine, parameter, "weight", wanted=dist.get_rank() == 0)
        if tensor is not None:
            data = np.ascontiguousarray(tensor.numpy())
            found.append((name, list(tensor.shape), hashlib.sha256(data.data).hexdigest()))
    told: list[Any] = [digest_of(found)]
    dist.broadcast_object_list(told)
    return str(told[0])


def steps_of(loader: PlanLoader, parts: Sequence[range]) -> list[range]:
    """Return the steps that read some parts, as runs of steps that follow one another."""
    size = loader.global_packs
    numbers = sorted({step for part in parts for step in range(part.start // size, -(-part.stop // size))})
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def packs_at_once(world: int, micro_packs: int) -> int:
    """Return how many packs go through all ranks at once: a power of two, so that parts end where steps do."""
    return 1 << (max(world * micro_packs, 1) - 1).bit_length()


@torch.no_grad()
def complete(
    engine: Any,
    loader: PlanLoader,
    folder: ReferenceFolder,
    parts: Sequence[range],
    device: torch.device,
    stops: Callable[[], bool],
) -> bool:
    """Compute and publish the parts that are missing; says false where any rank was asked to stop before the end.

    Every rank calls this alike. `loader` gives `packs_at_once` a step. Raises RecipeError where an answer has no
    id that weighs anything.
    """
    engine.eval()
    waiting, rows, told = list(parts), list[tuple[Any, ...]](), time.monotonic()
    for run in steps_of(loader, parts):
        with closing(loader.steps(run.start, run.stop)) as steps:
            for step in steps:
                mine = [row for found in _rows(engine, loader, step, device) for row in found]
                collected: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(collected, (mine, stops()))
                rows += [row for theirs, _ in collected for row in theirs]
                done = (step.number + 1) * loader.global_packs
                waiting, rows = _published(folder, waiting, rows, done)
                if any(stopping for _, stopping in collected):
                    return False
                if time.monotonic() - told > _TOLD_EVERY_S:
                    told = time.monotonic()
                    log.info("reference: %d of %d parts are left", len(waiting), len(parts))
    folder.refresh()
    return True


def _published(
    folder: ReferenceFolder, parts: list[range], rows: list[tuple[Any, ...]], done: int
) -> tuple[list[range], list[tuple[Any, ...]]]:
    """Publish the parts whose packs are all done; returns the parts and rows that are left."""
    for part in [part for part in parts if part.stop <= done]:
        if dist.get_rank() == 0:
            folder.publish(part, [row for row in rows if row[0] in part])
    left = [part for part in parts if part.stop > done]
    return left, [row for row in rows if any(row[0] in part for part in left)]


def _rows(engine: Any, loader: PlanLoader, step: Any, device: torch.device) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of each micro-batch of a step."""
    for arrays, packs in zip(step.micro_batches, step.documents.packs.tolist(), strict=True):
        places = pair_places(loader.plan, packs)
        _, losses = engine(Batch.of(arrays, device))
        yield reference_rows(arrays, places, losses, is_whole=not step.faults)


def reference_rows(
    arrays: PackArrays, places: PairPlaces, losses_L: Tensor, *, is_whole: bool
) -> list[tuple[Any, ...]]:
    """Give a row (`COLUMNS`) for each pair of a micro-batch; `is_whole` says that all of its samples could be read.

    Raises RecipeError where an answer has nothing that is learned.
    """
    halves = places.halves(len(arrays.labels))
    ids = answer_ids(arrays, halves, len(places))
    sums = answer_log_probabilities(losses_L, torch.from_numpy(halves).to(losses_L.device), len(places)).cpu().numpy()
    if is_whole and not ids.all():
        pair = int(np.flatnonzero((ids == 0).any(axis=1))[0])
        raise RecipeError(
            f"train.preference: the pair of pack {places.packs[pair]}, slot {places.slots[pair]} has an answer whose "
            "ids weigh nothing; see plan.vision_weight and plan.text_weight"
        )
    values = [[float(value) if count else None for value, count in zip(*pair, strict=True)]
              for pair in zip(sums, ids, strict=True)]  # fmt: skip
    places_of = zip(places.packs.tolist(), places.slots.tolist(), values, ids.tolist(), strict=True)
    return [(pack, slot, *value, *count) for pack, slot, value, count in places_of]


def answer_ids(arrays: PackArrays, halves: np.ndarray, pairs: int) -> np.ndarray:
    """Count the ids of each answer that are learned, int64 (P, 2)."""
    counts = np.bincount(halves[arrays.labels >= 0], minlength=2 * pairs + 1)
    return counts[: 2 * pairs].reshape(pairs, 2).astype(np.int64)
