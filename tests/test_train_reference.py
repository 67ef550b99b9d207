"""The trainer beside a plain loop: same losses, norms, rates and gradients, through ends of epochs and clipping.

Run as a script, this file is the one rank of the runs that are held against the plain loop.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_model import ModelSettings
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary

pytestmark = pytest.mark.slow

VOCABULARY = byte_vocabulary(33)
MODEL = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}
PACKS, STEPS = 4, 14
LR, WARM_UP, MIN_SHARE, CLIP, DECAY, BETAS, EPS = 3e-3, 5, 0.1, 0.4, 0.1, (0.9, 0.95), 1e-6
SETTINGS: Mapping[str, Any] = {
    "device": "cpu", "ranks": 1, "global_packs_per_step": PACKS, "tensorboard": False, "model": MODEL, "lr": LR,
    "warmup_steps": WARM_UP, "min_lr_share": MIN_SHARE, "clip": CLIP, "weight_decay": DECAY, "steps": STEPS,
    "checkpoint_every": 1000, "guard": {},
}  # fmt: skip
RUNS = ((0, 1), (1, 3))  # stage, packs at once: accumulates 4; accumulates 2, of which the second is short of packs
BF16_PACKS = 16
BF16_RUNS = ((1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"))  # stage, what is offloaded


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    store = open_store(str(folder / "store"))
    snapshot = write_token_source(store, "mixed", VOCABULARY, Amounts(images=8, texts=7, shards=1))
    plan = write_plan(store, [snapshot], PlanSettings(context=127))
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1",
                                "TOKENMILL_RENDEZVOUS": f"file://{folder}/rendezvous"}  # fmt: skip
    command = [sys.executable, __file__, str(folder), plan.folder.path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


@pytest.fixture(scope="module")
def expected(trained: Path) -> list[dict[str, float]]:
    return list(plain_rows(the_plan(trained)))


def the_plan(folder: Path) -> Plan:
    return open_plan(open_store(str(folder / "store")), (folder / "plan.txt").read_text())


@pytest.mark.parametrize(("stage", "micro_packs"), RUNS)
def test_run_has_the_losses_norms_and_rates_of_a_plain_loop(
    trained: Path, expected: list[dict[str, float]], stage: int, micro_packs: int
) -> None:
    lines = (trained / "store" / "checkpoints" / run_name(stage, micro_packs) / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in lines.splitlines()]

    assert the_plan(trained).num_packs % PACKS  # the last step of an epoch has fillers
    assert len(found) == len(expected) > 2 * the_plan(trained).num_packs // PACKS
    assert sum(row["grad_norm"] > CLIP for row in expected) > STEPS // 2
    for ours, theirs in zip(found, expected, strict=True):
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=2e-5), ours["step"]


@pytest.mark.parametrize(("stage", "offload"), BF16_RUNS)
def test_bf16_gradients_of_micro_steps_are_summed_in_fp32(trained: Path, stage: int, offload: str) -> None:
    found, wanted = (np.load(trained / f"bf16-{stage}-{offload}-{kind}.npz") for kind in ("found", "wanted"))

    assert set(found) == set(wanted)
    for name in found:
        off = np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()
        assert off <= 1e-5, name


def plain_rows(plan: Plan) -> Iterator[dict[str, float]]:
    """Train on whole steps with plain torch; nothing of the trainer but the model, its groups and its packs is used."""
    import torch

    from tokenmill.train.loader import PlanLoader
    from tokenmill.train.loss import plain_loss
    from tokenmill.train.model import Batch, build_model, parameter_groups

    loader = PlanLoader(plan, VOCABULARY, global_packs=PACKS, micro_packs=PACKS, threads=0)
    model = build_model(ModelSettings.model_validate(MODEL), VOCABULARY, plan.context).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, DECAY), lr=0.0, betas=BETAS, eps=EPS)
    for number, step in enumerate(loader.steps(0, STEPS)):
        (arrays,) = step.micro_batches
        batch = Batch.of(arrays, "cpu")
        matrix = model.causal.get_output_embeddings().weight
        loss = plain_loss(model.hidden(batch), matrix, batch.labels, batch.loss_weight) / batch.loss_weight.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = plain_rate(number)
        optimizer.step()
        yield {"loss": loss.item(), "grad_norm": norm.item(), "lr": plain_rate(number),
               "weight": float(arrays.loss_weight.sum())}  # fmt: skip


def plain_rate(number: int) -> float:
    """Rise over the warm-up's steps towards the peak, which the next has; then half a cosine to the last's end."""
    if number < WARM_UP:
        return LR * (number + 1) / (WARM_UP + 1)
    angle = math.pi * (number - WARM_UP) / (STEPS - WARM_UP)
    return LR * (MIN_SHARE + (1 - MIN_SHARE) * (1 + math.cos(angle)) / 2)


def run_name(stage: int, micro_packs: int) -> str:
    return f"zero{stage}-micro{micro_packs}"


def _be_the_rank(folder: Path, plan: str) -> None:
    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.job import TrainJob
    from tokenmill.train.loop import train

    (folder / "plan.txt").write_text(plan)
    for stage, micro_packs in RUNS:
        own = {"run": run_name(stage, micro_packs), "zero_stage": stage, "micro_packs": micro_packs}
        settings = TrainSettings.model_validate({**SETTINGS, **own})
        assert train(TrainJob(root=str(folder / "store"), plan=plan, settings=settings)).finished
    for stage, offload in BF16_RUNS:
        _write_bf16_gradients(folder, plan, stage, offload)


def _write_bf16_gradients(folder: Path, plan: str, stage: int, offload: str) -> None:
    """Write Adam's first moment after two steps, which is of their gradients alone, and what it should be."""
    import torch

    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.job import TrainJob
    from tokenmill.train.model import Batch, named_parameters
    from tokenmill.train.parameters import link_states, whole
    from tokenmill.train.training_run import start
    from tokenmill.train.training_step import take_step

    own = {"run": f"bf16-{stage}-{offload}", "zero_stage": stage, "offload": offload, "precision": "bf16", "clip": 0.0,
           "lr": 1e-9, "global_packs_per_step": BF16_PACKS, "micro_packs": 1}  # fmt: skip
    settings = TrainSettings.model_validate({**SETTINGS, **own})
    run = start(TrainJob(root=str(folder / "store"), plan=plan, settings=settings))
    run.engine.train()
    wanted: dict[str, Any] = {}
    plain = _plain_copy(run)
    for step in run.loader.steps(0, 2):  # the second must not find sums of the first, nor lose its own
        wanted = {name: BETAS[0] * before for name, before in wanted.items()}
        for arrays in step.micro_batches:
            plain.zero_grad()
            (plain(Batch.of(arrays, "cpu"))[0] / step.weight).backward()
            for name, parameter in named_parameters(plain):
                wanted[name] = wanted.get(name, 0.0) + parameter.grad.float()
        take_step(run, step, stopping=False)
    link_states(run.engine)
    found = {name: whole(run.engine, p, "exp_avg") / (1 - BETAS[0]) for name, p in named_parameters(run.model)}
    for kind, tensors in (("found", found), ("wanted", wanted)):
        np.savez(
            folder / f"{settings.run}-{kind}.npz",
            **{name: np.asarray(torch.as_tensor(t)) for name, t in tensors.items()},
        )


def _plain_copy(run: Any) -> Any:
    """Build the same model without an engine, with matrices in bf16 and rotary frequencies in fp32."""
    import torch

    from tokenmill.train.model import build_model

    model = build_model(run.settings.model, run.loader.vocabulary, run.loader.plan.context).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


if __name__ == "__main__":
    _be_the_rank(Path(sys.argv[1]), sys.argv[2])
