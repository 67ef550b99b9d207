"""What a tokenizer's run leaves to look at: a row a step, TensorBoard, and which samples could not be read.

Rank 0 writes; the other ranks hand their faults in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.run_files import RunFiles
from tokenmill.train.vision_data import Fault
from tokenmill.train.world import world

_FAULTS = "unreadable.jsonl"
_SHOWN = (
    "loss", "l2", "l1", "perceptual", "adversarial", "discriminator", "commitment", "codebook", "usage", "perplexity",
    "revived", "grad_norm", "lr", "images_per_s", "data_wait_s", "psnr_db", "ssim", "psnr_video_db", "ssim_video",
)  # fmt: skip


class TokenizerLog:
    """The files of one launch of a run that goes on from step `done`; every rank makes one and calls it alike."""

    def __init__(self, folder: RunFolder, done: int, progress: Path | None, *, tensorboard: bool) -> None:
        self._files: RunFiles | None = None
        if world()[0] == 0:
            self._files = RunFiles(folder, done, progress, (_FAULTS,), tensorboard=tensorboard, shown=_SHOWN)

    def add(self, row: Mapping[str, Any], faults: Sequence[Fault], total_steps: int) -> None:
        """Write a step's row (with `unreadable` of all ranks), and what this rank could not read."""
        collected: list[Any] = [faults]
        if row["unreadable"] and world()[1] > 1:
            collected = [None] * world()[1]
            dist.all_gather_object(collected, list(faults))
        if self._files is not None:
            self._files.add_metrics(row, total_steps)
            told = (fault for found in collected for fault in found)
            self._files.add(_FAULTS, ({"step": row["step"], **asdict(fault)} for fault in told))

    def publish(self) -> None:
        """Put the files where they belong, if that is elsewhere."""
        if self._files is not None:
            self._files.publish()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
