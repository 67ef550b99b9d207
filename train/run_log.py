"""What a run leaves to look at: metrics, TensorBoard, which samples each step read, and which could not be read.

Rank 0 writes; the other ranks hand their part in. On a remote store the files grow in a scratch folder and are
published with every checkpoint, since objects cannot be appended to.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch.distributed as dist

from tokenmill.settings_train import TrainSettings
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.loader import Step
from tokenmill.train.metrics import Board
from tokenmill.train.rows import RowFile
from tokenmill.train.world import world

_FILES = ("metrics.jsonl", "unreadable.jsonl", "samples.jsonl")


class RunLog:
    """The files of one launch of a run that goes on from step `done`; every rank makes one and calls it alike."""

    def __init__(self, folder: RunFolder, settings: TrainSettings, done: int, progress: Path | None) -> None:
        self._folder = folder
        self._is_writer = world()[0] == 0
        self._wants_samples = settings.log_samples
        self._started, self._first = time.monotonic(), done
        if not self._is_writer:
            return
        local = folder.store.local_path(folder.at("").rstrip("/"))
        self._scratch = None if local else _fetched(folder)
        here = local or self._scratch or Path()
        metrics, faults, samples = (here / name for name in _FILES)
        self._metrics, self._faults = RowFile(metrics, done), RowFile(faults, done)
        self._samples = RowFile(samples, done) if settings.log_samples else None
        self._progress = RowFile(progress, 0) if progress else None
        self._board = Board(here / "tensorboard", done, enabled=settings.tensorboard)

    def add(self, step: Step, row: Mapping[str, Any], total_steps: int) -> None:
        """Write a step's metrics and what was read in it."""
        samples = _gathered(step, everything=self._wants_samples, faults=row["unreadable"] > 0)
        if not self._is_writer:
            return
        per_step_s = (time.monotonic() - self._started) / (row["step"] - self._first)
        row = {**row, "eta_s": per_step_s * (total_steps - row["step"])}
        for file in (self._metrics, self._progress, self._board):
            if file is not None:
                file.add(row)
        for sample in samples:
            if sample["fault"]:
                self._faults.add({"step": row["step"], **sample})
        if self._samples is not None:
            self._samples.add({"step": row["step"], "samples": samples})

    def publish(self) -> None:
        """Put the files where they belong, if that is elsewhere."""
        if self._is_writer and self._scratch is not None:
            self._board.flush()
            for path in sorted(path for path in self._scratch.rglob("*") if path.is_file()):
                self._folder.store.put(self._folder.at(str(path.relative_to(self._scratch))), path.read_bytes())

    def close(self) -> None:
        if not self._is_writer:
            return
        for file in (self._metrics, self._faults, self._samples, self._progress, self._board):
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


def _gathered(step: Step, *, everything: bool, faults: bool) -> list[dict[str, Any]]:
    """Collect what all ranks read, in the plan's order; only when it will be written, since it costs a gather."""
    if not everything and not faults:
        return []
    collected: list[Any] = [None] * world()[1]
    dist.all_gather_object(collected, [asdict(s) for s in (step.samples if everything else step.faults)])
    return sorted((s for samples in collected for s in samples), key=lambda s: (s["pack"], s["slot"]))
