"""What a step cost and brought, in numbers, and for TensorBoard."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SHOWN = ("loss", "loss_text", "loss_vision", "loss_by_template", "z_loss", "lr", "grad_norm", "tokens_per_s",
         "data_wait_s", "memory_gib", "mfu", "loss_preference", "loss_next_token", "margin", "accuracy",
         "reward_chosen", "reward_rejected")  # fmt: skip


class Board:
    """TensorBoard event files, or nothing."""

    def __init__(self, folder: Path, upto_step: int, *, enabled: bool, shown: Sequence[str] = SHOWN) -> None:
        self._writer: Any = None
        self._shown = shown
        if enabled:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=upto_step + 1)

    def add(self, row: Mapping[str, Any], group: str = "train") -> None:
        """Show what is among the figures to show; a mapping is a curve for each of its names."""
        if self._writer is None:
            return
        for name in self._shown:
            value = row.get(name)
            values = (
                {f"{name}/{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
            )
            for key, one in values.items():
                if one is not None:
                    self._writer.add_scalar(f"{group}/{key}", one, row["step"])

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def peak_memory_gib() -> float:
    """Return the most memory this process has held: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
