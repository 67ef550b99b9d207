"""What a run leaves to look at: metrics, evaluations, TensorBoard, the samples of each step, and which were unreadable.

Rank 0 writes; the other ranks hand their part in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tokenmill.manifests.identity import digest_of
from tokenmill.settings_train import TrainSettings
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.loader import Step
from tokenmill.train.run_files import RunFiles
from tokenmill.train.trackers import open_trackers
from tokenmill.train.world import world

_FAULTS, _SAMPLES, _EVALUATION = "unreadable.jsonl", "samples.jsonl", "evaluation.jsonl"


class RunLog:
    """The files of one launch of a run that goes on from step `done`; every rank makes one and calls it alike."""

    def __init__(self, folder: RunFolder, settings: TrainSettings, done: int, progress: Path | None) -> None:
        self._wants_samples = settings.log_samples
        self._tells = world()[0] % settings.sequence_parallel == 0  # ranks that share packs have read the same
        names = [
            _FAULTS,
            *([_SAMPLES] if settings.log_samples else []),
            *([_EVALUATION] if settings.evaluation else []),
        ]
        self._files: RunFiles | None = None
        if world()[0] == 0:
            run_id = digest_of([folder.store.url, folder.run])[:16]
            self._files = RunFiles(folder, done, progress, names, tensorboard=settings.tensorboard,
                                   open_trackers=lambda here: open_trackers(settings, here, run_id))  # fmt: skip

    def add(self, step: Step, row: Mapping[str, Any], total_steps: int) -> None:
        """Write a step's metrics and what was read in it."""
        samples = _gathered(step, everything=self._wants_samples, faults=row["unreadable"] > 0, tells=self._tells)
        if self._files is None:
            return
        self._files.add_metrics(row, total_steps)
        self._files.add(_FAULTS, ({"step": row["step"], **sample} for sample in samples if sample["fault"]))
        if self._wants_samples:
            self._files.add(_SAMPLES, [{"step": row["step"], "samples": samples}])

    def add_evaluation(self, row: Mapping[str, Any]) -> None:
        """Write what an evaluation has found."""
        if self._files is not None:
            self._files.add(_EVALUATION, [row])
            self._files.show(row, "evaluation")

    def go_back(self, done: int) -> None:
        """Cut the rows back to a step that the run goes on from anew."""
        if self._files is not None:
            self._files.go_back(done)

    def publish(self) -> None:
        """Put the files where they belong, if that is elsewhere."""
        if self._files is not None:
            self._files.publish()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()


def _gathered(step: Step, *, everything: bool, faults: bool, tells: bool) -> list[dict[str, Any]]:
    """Collect what all ranks read, in the plan's order; only when it will be written, since it costs a gather."""
    if not everything and not faults:
        return []
    collected: list[Any] = [None] * world()[1]
    mine = (step.samples if everything else step.faults) if tells else []
    dist.all_gather_object(collected, [asdict(sample) for sample in mine])
    return sorted((s for samples in collected for s in samples), key=lambda s: (s["pack"], s["slot"]))
