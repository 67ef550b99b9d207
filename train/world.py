"""Which rank this process is, and how long ranks wait for each other."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)


def world() -> tuple[int, int]:
    """Return (rank, number of ranks)."""
    return dist.get_rank(), dist.get_world_size()
