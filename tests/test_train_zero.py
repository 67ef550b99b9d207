"""ZeRO stages on two ranks: one loss, one gradient norm, and checkpoints that any of them goes on from.

Run as a script, this file is one of the two ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary

RUNS = [("0", "fp32", None), ("1", "fp32", "0"), ("2", "fp32", "1"), ("3", "fp32", "2"), ("0", "fp32", "3"),
        ("1", "bf16", None), ("3", "bf16", "1")]  # fmt: skip
STEPS = 3
SAVED_AT = 2


@pytest.mark.slow
def test_zero_stages_agree_and_go_on_from_each_others_checkpoints(tmp_path: Path) -> None:
    vocabulary = byte_vocabulary(33)
    store = open_store(str(tmp_path / "store"))
    snapshot = write_token_source(store, "mixed", vocabulary, Amounts(images=30, texts=30, shards=1))
    plan = write_plan(store, [snapshot], PlanSettings(context=128))
    ranks = [_start(rank, tmp_path, plan.folder.path) for rank in (0, 1)]
    outputs = [rank.communicate()[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:]

    rows = json.loads((tmp_path / "rows.json").read_text())
    reference = rows["0 fp32 None"]
    for (stage, precision, start), found in zip(RUNS, rows.values(), strict=True):
        tolerance = 1e-5 if precision == "fp32" else 3e-3
        expected = reference if start is None else reference[SAVED_AT:]
        assert [row["step"] for row in found] == [row["step"] for row in expected], (stage, precision, start)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance), (stage, precision, start)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=tolerance * 3), (stage, precision, start)


def _start(rank: int, folder: Path, plan: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "TOKENMILL_RENDEZVOUS": f"file://{folder / 'rendezvous'}",
    }  # fmt: skip
    command = [sys.executable, __file__, str(folder), plan]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _be_a_rank(folder: Path, plan: str) -> None:
    from torch import distributed

    rows = {f"{stage} {precision} {start}": _train(folder, plan, int(stage), precision, start)
            for stage, precision, start in RUNS}  # fmt: skip
    if distributed.get_rank() == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _train(folder: Path, plan: str, stage: int, precision: str, start: str | None) -> list[dict[str, Any]]:
    """Train from the start, or from the checkpoint that the run with stage `start` left; returns its metrics."""
    from torch import distributed

    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.job import TrainJob
    from tokenmill.train.loop import train
    from tokenmill.train.rows import read_rows

    run = f"{precision}-{stage}"
    settings = TrainSettings.model_validate({
        "run": run, "device": "cpu", "zero_stage": stage, "precision": precision, "steps": STEPS, "keep": 9,
        "checkpoint_every": SAVED_AT, "global_packs_per_step": 3, "schedule": "constant", "tensorboard": False,
        "model": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48},
    })  # fmt: skip
    runs = folder / "store" / "checkpoints"
    if distributed.is_initialized():
        distributed.barrier()
    if start is not None and os.environ["RANK"] == "0":
        _copy_checkpoint(runs / f"{precision}-{start}", runs / run)
    if distributed.is_initialized():
        distributed.barrier()
    result = train(TrainJob(root=str(folder / "store"), plan=plan, settings=settings))
    assert result.finished
    distributed.barrier()
    return list(read_rows(runs / run / "metrics.jsonl"))


def _copy_checkpoint(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    name = f"step-{SAVED_AT:08d}"
    shutil.copytree(source / name, target / name)


if __name__ == "__main__":
    _be_a_rank(Path(sys.argv[1]), sys.argv[2])
