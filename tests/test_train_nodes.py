"""Two nodes of one rank each, that meet over 127.0.0.1: whatever leaves the device comes back as it was.

One launch of the launcher itself, on both, through `--hostfile`'s way with this machine behind a stand-in for ssh. Run
as a module, this file is a launcher or a rank.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.conversations import conversations
from tests.stand_in_ssh import free_port, stand_in_for_ssh

from tokenmill.demo.tokens import Amounts, write_shards, write_token_source
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.recipe import load_recipe
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.hostfile import Hosts
from tokenmill.train.hosts import run_on_hosts

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "train" / "recipes"
PATIENCE_S = 2.0
LR = 1e-3
STEPS = 3
SAVED_AT = 2
# name → settings that differ, and the run whose checkpoint it goes on from
CASES: Mapping[str, tuple[Mapping[str, Any], str | None]] = {
    "plain": ({"zero_stage": 0}, None),
    "optimizer-1": ({"zero_stage": 1, "offload": "optimizer"}, None),
    "optimizer-2": ({"zero_stage": 2, "offload": "optimizer", "activation_checkpointing": "cpu"}, "optimizer-1"),
    "optimizer-3": ({"zero_stage": 3, "offload": "optimizer"}, "optimizer-2"),
    "parameters": ({"zero_stage": 3, "offload": "parameters", "activation_checkpointing": "cpu"}, None),
    "brought-back": ({"zero_stage": 1, "activation_checkpointing": "device"}, "parameters"),
    "shared": (
        {"zero_stage": 3, "offload": "parameters", "activation_checkpointing": "cpu", "sequence_parallel": 2},
        "brought-back",
    ),
    "bf16": ({"zero_stage": 2, "offload": "optimizer", "precision": "bf16"}, None),
    "bf16-parameters": ({"zero_stage": 3, "offload": "parameters", "precision": "bf16"}, "bf16"),
}


# the same for runs on other plans: what is tuned on, from the weights of another run
TUNING: Mapping[str, Mapping[str, Any]] = {
    "quality": {"start_from": "plain", "schedule": "linear", "warmup_steps": 0, "zero_stage": 2},
    "instruct": {"start_from": "quality", "schedule": "constant", "zero_stage": 3},
}


@pytest.mark.slow
def test_two_nodes_with_offload_and_checkpointing_train_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = byte_vocabulary(33)
    store = open_store(str(tmp_path / "store"))
    snapshot = write_token_source(store, "mixed", vocabulary, Amounts(images=30, texts=30, shards=1))
    plans = {"": write_plan(store, [snapshot], PlanSettings(context=128)).folder.path}
    chats = write_shards(store, "chats", vocabulary, [conversations(vocabulary, 24)])
    for run, recipe, tokens in (("quality", "qft", snapshot), ("instruct", "instruct", chats)):
        settings = load_recipe(RECIPES / f"{recipe}.yaml").plan.model_copy(update={"context": 384})
        plans[run] = write_plan(store, [tokens], settings).folder.path
    stand_in_for_ssh(tmp_path / "bin", monkeypatch)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    command = [sys.executable, "-m", "tests.test_train_nodes", "launch", str(tmp_path), json.dumps(plans)]
    run_on_hosts(Hosts(("127.0.0.1", "localhost"), None), command)

    rows = {case: _rows(tmp_path, case) for case in CASES}
    for case, (changes, start) in CASES.items():
        expected = rows["plain"] if start is None else rows["plain"][SAVED_AT:]
        tolerance = 3e-3 if changes.get("precision") == "bf16" else 1e-5
        assert [row["step"] for row in rows[case]] == [row["step"] for row in expected], case
        for ours, theirs in zip(rows[case], expected, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance), case
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=3 * tolerance), case
    _check_tuning(tmp_path)
    assert PATIENCE_S / 2 <= float((tmp_path / "gave-up").read_text()) < 60 * PATIENCE_S  # torch's own is 30 minutes
    assert {path.name for path in (tmp_path / "store/checkpoints/launch/logs").iterdir()} == {
        "log-00.txt",
        "log-01.txt",
    }


def _check_tuning(folder: Path) -> None:
    """Hold what tuning logged against what its recipe supervises, and its rates against a line to 0."""
    quality, instruct = (_rows(folder, run) for run in TUNING)
    assert [row["lr"] for row in quality] == pytest.approx([LR, LR * 2 / 3, LR / 3])
    assert {name for row in quality for name in row["loss_by_template"]} <= {"generation", "unconditional", "language"}
    assert all(row["loss_vision"] > 0 for row in quality)
    assert {name for row in instruct for name in row["loss_by_template"]} == {"chat"}
    assert all(row["loss_vision"] is None and row["loss_text"] == pytest.approx(row["loss"]) for row in instruct)
    assert all(row["weight"] < row["tokens"] / 2 for row in instruct)  # of answers, not of all ids


def _rows(folder: Path, run: str) -> list[dict[str, Any]]:
    from tokenmill.train.rows import read_rows

    return list(read_rows(folder / "store" / "checkpoints" / run / "metrics.jsonl"))


def _launch(folder: Path, plan: str) -> None:
    from tokenmill.train.checkpoints import RunFolder
    from tokenmill.train.ranks import RankGroup, run_ranks

    store = open_store(str(folder / "store"))
    group = RankGroup(module="tests.test_train_nodes", job=json.dumps([str(folder), plan]), ranks=1, threads_per_rank=1,
                      folder=RunFolder(store, "launch"), device="cpu")  # fmt: skip
    assert run_ranks(group)["step"] == STEPS


def _rank(text: str, _rows: Path) -> Any:
    folder, told = json.loads(text)
    plans = json.loads(told)
    for case in (*CASES, *TUNING):
        result = _train(Path(folder), plans.get(case, plans[""]), case)
        print(asdict(result), flush=True)
    for case in ("optimizer-2", "parameters", "bf16"):
        assert _after_two_steps(Path(folder), plans[""], case, drops=True) == _after_two_steps(
            Path(folder), plans[""], case, drops=False
        ), case
    _wait_in_vain(Path(folder))
    return result


def _after_two_steps(folder: Path, plan: str, case: str, *, drops: bool) -> dict[str, list[float]]:
    """Give weights and moments after two steps, with a third one between them whose gradients are dropped, or not."""
    from tokenmill.train.engine import discarding
    from tokenmill.train.model import Batch, named_parameters
    from tokenmill.train.parameters import PARTS, link_states, whole
    from tokenmill.train.training_run import start
    from tokenmill.train.training_step import take_step

    run = start(_job(folder, plan, f"dropping-{case}", CASES[case][0]))
    run.engine.train()
    first, second, dropped = run.loader.steps(0, STEPS)
    take_step(run, first, stopping=False)
    if drops:
        for number, arrays in enumerate(dropped.micro_batches):
            if number:
                run.engine.step()
            run.engine.backward(run.engine(Batch.of(arrays, run.device))[0], scale_wrt_gas=False)
        with discarding(run.engine):
            run.engine.step()
    take_step(run, second, stopping=False)
    link_states(run.engine)
    return {
        f"{name}/{part}": whole(run.engine, parameter, part).flatten().tolist()
        for name, parameter in named_parameters(run.model)
        for part in PARTS
    }


def _wait_in_vain(folder: Path) -> None:
    """Let one rank wait in DeepSpeed's own group for the other, which comes when that has given up."""
    import torch
    from deepspeed.utils import groups
    from torch import distributed

    from tokenmill.train.engine import set_timeouts

    set_timeouts(PATIENCE_S)
    if distributed.get_rank() == 0:
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            distributed.all_reduce(torch.zeros(1), group=groups._get_data_parallel_group())
        (folder / "gave-up").write_text(str(time.monotonic() - started))
    else:
        while not (folder / "gave-up").exists():
            time.sleep(0.05)


def _train(folder: Path, plan: str, case: str) -> Any:
    """Train from the start, or from the checkpoint that another case left."""
    from torch import distributed

    from tokenmill.train.loop import train

    changes, start = CASES.get(case) or (TUNING[case], None)
    runs, name = folder / "store" / "checkpoints", f"step-{SAVED_AT:08d}"
    if start is not None and os.environ["RANK"] == "0":
        shutil.copytree(runs / start / name, runs / case / name)
    if distributed.is_initialized():
        distributed.barrier()
    return train(_job(folder, plan, case, changes))


def _job(folder: Path, plan: str, run: str, changes: Mapping[str, Any]) -> Any:
    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.job import TrainJob

    settings = TrainSettings.model_validate({
        "run": run, "device": "cpu", "steps": STEPS, "keep": 9, "timeout_s": 60.0, "checkpoint_every": SAVED_AT,
        "global_packs_per_step": 3, "lr": LR, "schedule": "constant", "tensorboard": False,
        "model": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}, **changes,
    })  # fmt: skip
    return TrainJob(root=str(folder / "store"), plan=plan, settings=settings)


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        _launch(Path(sys.argv[2]), sys.argv[3])
    else:
        from tokenmill.train.rank_process import rank_main

        sys.exit(rank_main(sys.argv[1:], _rank))
