"""Memory of steps: used again, and never while anything on it is left."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokenmill.train.step_buffers import StepBuffers

Ids = NDArray[np.int64]
WAYS: dict[str, Callable[[Ids], Any]] = {
    "slice": lambda ids: ids[3:5],
    "reversed": lambda ids: ids[::-1],
    "other type": lambda ids: ids.view(np.float32)[:7],
    "shape": lambda ids: ids.reshape(4, -1).T,
    "memoryview": lambda ids: memoryview(ids)[1:],  # type: ignore[arg-type]
    "tensor": torch.from_numpy,
    "slice of a tensor": lambda ids: torch.from_numpy(ids)[5:],
    "storage": lambda ids: torch.from_numpy(ids).untyped_storage(),
    "detached": lambda ids: torch.from_numpy(ids).view(2, -1).detach(),
    "array of a tensor": lambda ids: torch.from_numpy(ids)[1:].numpy()[2:],
    "exported": lambda ids: np.from_dlpack(ids[1:]),
}


@pytest.mark.parametrize("way", WAYS)
def test_step_buffers_memory_comes_back_with_the_last_thing_on_it(way: str) -> None:
    buffers = StepBuffers(2)
    memory = buffers.lend(512)
    place = memory.ctypes.data
    held = WAYS[way](memory.view(np.int64))
    del memory

    other = buffers.lend(512)
    assert other.ctypes.data != place
    del held

    assert buffers.lend(512).ctypes.data == place


class Ring:
    """Is part of a cycle, and looks at its memory when the collector takes it."""

    def __init__(self, memory: NDArray[np.uint8], seen: list[int]) -> None:
        self.ring, self.tensor, self.seen = self, torch.from_numpy(memory), seen

    def __del__(self) -> None:
        self.seen.append(int(self.tensor[0]))


def test_step_buffers_memory_in_cyclic_garbage_is_left_alone_until_it_was_collected() -> None:
    buffers, seen = StepBuffers(2), list[int]()
    memory = buffers.lend(64)
    memory[:] = 7
    place = memory.ctypes.data
    Ring(memory, seen)
    del memory

    buffers.lend(64)[:] = 9
    gc.collect()

    assert seen == [7]
    assert buffers.lend(64).ctypes.data == place


def test_step_buffers_of_many_threads_never_give_the_same_memory_twice() -> None:
    buffers = StepBuffers(4)

    def lend_and_keep_some(number: int) -> int:
        rng, kept, wrong = random.Random(number), list[tuple[torch.Tensor, int]](), 0
        for turn in range(3_000):
            mark = 1000 * number + turn
            ids = buffers.lend(8 * rng.choice([64, 64, 96, 512])).view(np.int64)
            ids[:] = mark
            kept.append((torch.from_numpy(ids)[rng.randrange(8) :], mark))
            if len(kept) > 5:
                tensor, mark = kept.pop(rng.randrange(len(kept)))
                wrong += not bool((tensor == mark).all())
        return wrong + sum(not bool((tensor == mark).all()) for tensor, mark in kept)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lend_and_keep_some, range(4))) == [0] * 4
