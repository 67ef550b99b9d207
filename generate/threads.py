"""How many CPU threads a small model runs on: one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SMALL_WIDTH = 1024


@contextmanager
def steady_threads(model: Any) -> Iterator[None]:
    """Run a small model on one CPU thread: its steps are too short to share, and rounding stays that of one thread.

    On two busy cores six pictures of the demo's model took 17 s with one thread and 88 s with two.
    """
    import torch

    before = torch.get_num_threads()
    if model.config.hidden_size <= _SMALL_WIDTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
