"""One of the ranks that tests/test_train_evaluation.py starts: several runs, with evaluations and without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PACKS = 5
MODEL: dict[str, Any] = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "dropout": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "still-0": {"zero_stage": 0, "lr": 1e-30, "steps": 2},
    "still-3": {"zero_stage": 3, "lr": 1e-30, "steps": 2},
    "still-shared": {"sequence_parallel": 2, "lr": 1e-30, "steps": 2},
    "learns": {"zero_stage": 1, "steps": 5, "z_loss": 1e-3, "loss_chunk_tokens": 50},
    "unevaluated": {"zero_stage": 1, "steps": 5, "z_loss": 1e-3, "loss_chunk_tokens": 50, "evaluation": None},
}


def _be_a_rank(folder: Path, training: str, held_out: str) -> None:
    from torch import distributed

    rows = {name: _train(folder, training, held_out, name) for name in CASES}
    if distributed.get_rank() == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _train(folder: Path, training: str, held_out: str, name: str) -> dict[str, list[dict[str, Any]]]:
    """Train one case; returns its metrics and what its evaluations found."""
    from torch import distributed

    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.job import TrainJob
    from tokenmill.train.loop import train
    from tokenmill.train.rows import read_rows

    settings = TrainSettings.model_validate({
        "run": name, "device": "cpu", "checkpoint_every": 99,
        "global_packs_per_step": 3, "warmup_steps": 1, "tensorboard": name == "learns",
        "evaluation": {"phase": "held", "every": 2, "packs": PACKS},
        "model": MODEL,
        **CASES[name],
    })  # fmt: skip
    job = TrainJob(root=str(folder / "store"), plan=training, evaluation_plan=held_out, settings=settings)
    assert train(job).finished
    distributed.barrier()
    runs = folder / "store" / "checkpoints" / settings.run
    return {part: list(read_rows(runs / f"{part}.jsonl")) for part in ("metrics", "evaluation")}


if __name__ == "__main__":
    _be_a_rank(*map(Path, sys.argv[1:2]), *sys.argv[2:])
