"""What a tokenizer's run leaves to look at: a row a step, TensorBoard, and which samples could not be read.

Rank 0 writes; the other ranks hand their faults in. On a remote store the files grow in a scratch folder and are
published with every checkpoint, since objects cannot be appended to.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch.distributed as dist

from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.metrics import Board
from tokenmill.train.rows import RowFile
from tokenmill.train.vision_data import Fault
from tokenmill.train.world import world

_FILES = ("metrics.jsonl", "unreadable.jsonl")
_SHOWN = (
    "loss", "l2", "l1", "perceptual", "adversarial", "discriminator", "commitment", "codebook", "usage", "perplexity",
    "revived", "grad_norm", "lr", "images_per_s", "data_wait_s", "psnr_db", "ssim", "psnr_video_db", "ssim_video",
)  # fmt: skip


class TokenizerLog:
    """The files of one launch of a run that goes on from step `done`; every rank makes one and calls it alike."""

    def __init__(self, folder: RunFolder, done: int, progress: Path | None, *, tensorboard: bool) -> None:
        self._folder = folder
        self._is_writer = world()[0] == 0
        self._started, self._first = time.monotonic(), done
        if not self._is_writer:
            return
        local = folder.store.local_path(folder.at("").rstrip("/"))
        self._scratch = None if local else _fetched(folder)
        here = local or self._scratch or Path()
        self._metrics, self._faults = (RowFile(here / name, done) for name in _FILES)
        self._progress = RowFile(progress, 0) if progress else None
        self._board = Board(here / "tensorboard", done, enabled=tensorboard, shown=_SHOWN)

    def add(self, row: Mapping[str, Any], faults: Sequence[Fault], total_steps: int) -> None:
        """Write a step's row (with `unreadable` of all ranks), and what this rank could not read."""
        collected: list[Any] = [faults]
        if row["unreadable"] and world()[1] > 1:
            collected = [None] * world()[1]
            dist.all_gather_object(collected, list(faults))
        if not self._is_writer:
            return
        per_step_s = (time.monotonic() - self._started) / (row["step"] - self._first)
        row = {**row, "eta_s": per_step_s * (total_steps - row["step"])}
        for file in (self._metrics, self._progress, self._board):
            if file is not None:
                file.add(row)
        for fault in (fault for found in collected for fault in found):
            self._faults.add({"step": row["step"], **asdict(fault)})

    def publish(self) -> None:
        """Put the files where they belong, if that is elsewhere."""
        if self._is_writer and self._scratch is not None:
            self._board.flush()
            for path in sorted(path for path in self._scratch.rglob("*") if path.is_file()):
                self._folder.store.put(self._folder.at(str(path.relative_to(self._scratch))), path.read_bytes())

    def close(self) -> None:
        if not self._is_writer:
            return
        for file in (self._metrics, self._faults, self._progress, self._board):
            if file is not None:
                file.close()
        self.publish()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _fetched(folder: RunFolder) -> Path:
    """Give a scratch folder with the rows that are there already."""
    scratch = Path(mkdtemp(prefix="tokenmill-run-"))
    for name in _FILES:
        if folder.store.exists(folder.at(name)):
            (scratch / name).write_bytes(folder.store.read_bytes(folder.at(name)))
    return scratch
