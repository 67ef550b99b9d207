"""How a peer's samples become packs in the training process: alone, or through torch DataLoader workers.

With workers there are two ways, and the faster one counts for each peer: `packs`, where workers assemble and send 16
packs at a time through shared memory, or `samples`, where they send 128 samples joined into two tensors (a tenth of the
bytes) and the training process assembles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.loader_peers.packing import Sample, first_fit

PACKS_AT_ONCE = 16
SAMPLES_AT_ONCE = 128


class Epoch:
    """Something that can be gone through again and again, giving packs; workers stay alive in between."""

    def __init__(self, packs: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._packs = packs

    def tokens(self) -> int:
        """Go through it once and return how many ids came that are not padding."""
        return sum(int(pack["num_tokens"]) for pack in self._packs())

    def packs(self) -> Iterator[dict[str, Any]]:
        return self._packs()


def alone(samples: Iterable[Sample]) -> Epoch:
    """Read and assemble in this process."""
    return Epoch(lambda: first_fit(samples))


def through_workers(samples: Iterable[Sample], way: str, workers: int) -> Epoch:
    """Read in a torch DataLoader's worker processes; `samples` shares itself out among them."""
    if way == "packs":
        stacks = _loader(_Packs(samples), workers)
        return Epoch(lambda: (pack for many in stacks for pack in separate(many)))
    joined = _loader(_Joined(samples), workers)
    return Epoch(lambda: first_fit(sample for many in joined for sample in taken_apart(many)))


def _loader(dataset: IterableDataset[Any], workers: int) -> Iterable[dict[str, torch.Tensor]]:
    return DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=4)


class _Packs(IterableDataset[Any]):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        packs = first_fit(self.samples)
        while many := list(islice(packs, PACKS_AT_ONCE)):
            yield stacked(many)


class _Joined(IterableDataset[Any]):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        samples = iter(self.samples)
        while many := list(islice(samples, SAMPLES_AT_ONCE)):
            yield joined(many)


def stacked(packs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Lay packs over each other, so that few tensors travel."""
    names = ("input_ids", "labels", "loss_weight", "position_ids")
    found = {name: torch.from_numpy(np.stack([pack[name] for pack in packs])) for name in names}
    found["cu_seqlens"] = torch.from_numpy(np.concatenate([pack["cu_seqlens"] for pack in packs]))
    found["counts"] = torch.tensor([(len(pack["cu_seqlens"]), pack["num_tokens"]) for pack in packs])
    return found


def separate(many: dict[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
    """Undo `stacked`, as views."""
    place = 0
    for number, (num_borders, num_tokens) in enumerate(many["counts"].tolist()):
        pack = {name: many[name][number] for name in ("input_ids", "labels", "loss_weight", "position_ids")}
        borders = many["cu_seqlens"][place : place + num_borders]
        place += num_borders
        yield {**pack, "cu_seqlens": borders, "num_tokens": num_tokens}


def joined(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Join samples into two tensors and their lengths (torch knows no arithmetic on uint16, but carries it)."""
    texts, codes = zip(*samples, strict=True)
    return {
        "lengths": torch.tensor([(len(text), len(code)) for text, code in samples]),
        "texts": torch.from_numpy(np.concatenate(texts)),
        "codes": torch.from_numpy(np.concatenate(codes)),
    }


def taken_apart(many: dict[str, torch.Tensor]) -> Iterator[Sample]:
    """Undo `joined`, as views."""
    texts, codes = many["texts"].numpy(), many["codes"].numpy()
    text_at = code_at = 0
    for num_text, num_codes in many["lengths"].tolist():
        yield texts[text_at : text_at + num_text], codes[code_at : code_at + num_codes]
        text_at, code_at = text_at + num_text, code_at + num_codes
