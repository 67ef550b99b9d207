"""Which rank this process is, which ranks share a sequence, and how long ranks wait for each other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
_FOR_EVER = timedelta(days=30)


def world() -> tuple[int, int]:
    """Return (rank, number of ranks)."""
    return dist.get_rank(), dist.get_world_size()


def await_first(what: str) -> None:
    """Hold every rank until the first calls this, however long that takes; fails where the first has died.

    A collective alone would end with the time-out that steps have. `what` names it: another time needs another name.
    """
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set(what, "done")
    else:
        store.wait([what], _FOR_EVER)
    dist.barrier()  # the store goes with the first rank: all have to have heard it


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceGroup:
    """Neighbouring ranks that read the same packs and hold a part of each: this rank's place among them.

    `group` is torch's process group, None where the rank has its sequences to itself.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Tell whether this rank speaks for the group, where something is to be counted once."""
        return self.rank == 0


ALONE = SequenceGroup()


def sequence_group(size: int, timeout: timedelta = TIMEOUT) -> SequenceGroup:
    """Join ranks [0, size), [size, 2 · size), … into groups and return this rank's; every rank must call it.

    `size` divides the number of ranks. Ranks of a group wait for each other as long as `timeout`.
    """
    if size == 1:
        return ALONE
    rank, ranks = world()
    groups = [dist.new_group(range(first, first + size), timeout=timeout) for first in range(0, ranks, size)]
    return SequenceGroup(rank=rank % size, size=size, group=groups[rank // size])
