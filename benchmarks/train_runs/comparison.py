"""tokenmill's trainer and transformers' Trainer in turn, on the same documents from the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.train_runs import packed
from benchmarks.train_runs.made_up import MadeUp, whole_documents, write_documents
from tokenmill.manifests.plans import Plan
from tokenmill.settings_model import ModelSettings
from tokenmill.train.model import build_model

REPOSITORY = Path(__file__).resolve().parents[2]

MODEL = {"hidden": 192, "layers": 4, "heads": 6, "kv_heads": 2, "ffn": 512}
STEP_PACKS, STEP_DOCUMENTS = 8, 16  # about as many ids
LR, SEED = 1e-3, 0
OURS = {f"{ranks} rank{'s' * (ranks > 1)}": ranks for ranks in (1, 2)}
PEERS = {"batches of 8": (8, False), "batches of 8, like lengths": (8, True), "batches of 2": (2, False)}
DEFAULT_PEER = "batches of 8"

Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much is measured: documents there are, steps of a run, of which the first do not count, and rounds."""

    documents: int
    steps: int
    warm_up_steps: int
    rounds: int


def compare(folder: Path, amount: Amount) -> dict[str, Any]:
    """Train in turn and compare."""
    made_up = MadeUp(documents=amount.documents, side=16, words=60, context=1_024, codebook=2_048)
    plan = made_up.write(folder / "store")
    supervised = write_documents(folder / "documents.npz", whole_documents(plan, made_up.vocabulary))
    _write_model(folder / "model", made_up)
    contestants = _contestants(folder, amount, plan, made_up.vocabulary.pad)
    runs: Runs = {name: [] for name in contestants}
    for number in range(amount.rounds):
        for name, contest in contestants.items():
            runs[name].append(contest(number))
            print(f"{name}: {_speed(runs[name][-1]):.0f} supervised ids/s", file=sys.stderr)
    found = {name: _row(rounds) for name, rounds in runs.items()}
    ours = max((name for name in found if name.startswith("tokenmill")), key=lambda one: _of(found, one))
    peers = {name: _of(found, ours) / _of(found, name) for name in found if not name.startswith("tokenmill")}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "documents": amount.documents,
        "supervised_ids": {"whole documents": supervised, "plan": round(_weight(plan))},
        "fill": plan.description["fill"],
        "model": MODEL,
        "runs": found,
        "best": ours,
        "ratio": peers[f"Trainer, {DEFAULT_PEER}"],
        "ratios": peers,
        "data_wait_share": found[ours]["data_wait_share"],
    }


def _contestants(folder: Path, amount: Amount, plan: Plan, pad: int) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Give everybody's run of one round, by name."""

    def ours(name: str, ranks: int, number: int) -> dict[str, Any]:
        settings = {"run": f"{name.replace(' ', '-')}-{number}", "device": "cpu", "ranks": ranks, "steps": amount.steps,
                    "global_packs_per_step": STEP_PACKS, "model": MODEL, "lr": LR, "seed": SEED}  # fmt: skip
        return packed.run(plan, settings, amount.warm_up_steps)

    def peer(batch: int, grouped: bool, number: int) -> dict[str, Any]:
        job = {"model": str(folder / "model"), "documents": str(folder / "documents.npz"), "batch": batch, "pad": pad,
               "step_documents": STEP_DOCUMENTS, "steps": amount.steps, "warm_up_steps": amount.warm_up_steps,
               "grouped": grouped, "seed": number, "lr": LR}  # fmt: skip
        return _plain(folder, job)

    return {
        **{f"tokenmill, {name}": lambda number, name=name, ranks=ranks: ours(name, ranks, number)
           for name, ranks in OURS.items()},
        **{f"Trainer, {name}": lambda number, how=how: peer(*how, number) for name, how in PEERS.items()},
    }  # fmt: skip


def _plain(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run the Trainer in a process; raises RuntimeError with its last words if it fails."""
    path = folder / "trainer.json"
    path.write_text(json.dumps(job))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
                                "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY)))}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.train_runs.plain_trainer", str(path)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the Trainer failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_model(folder: Path, made_up: MadeUp) -> None:
    """Write the weights that tokenmill begins with, for the Trainer."""
    model = build_model(ModelSettings.model_validate(MODEL), made_up.vocabulary, made_up.context, seed=SEED)
    model.causal.save_pretrained(folder)


def _weight(plan: Plan) -> float:
    return float(plan.costs(0, plan.num_packs).weight.sum())


def _speed(run: Mapping[str, Any]) -> float:
    return float(run["supervised"] / run["seconds"])


def _of(found: Mapping[str, Mapping[str, Any]], name: str) -> float:
    return float(found[name]["supervised_per_s"])


def _row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    speeds = [_speed(run) for run in runs]
    row: dict[str, Any] = {
        "supervised_per_s": median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "supervised_share": sum(run["supervised"] for run in runs) / sum(run["ids"] for run in runs),
        "first_loss": runs[0]["losses"][0],
        "last_loss": runs[0]["losses"][-1],
    }
    if "data_wait_share" in runs[0]:
        row["data_wait_share"] = median(run["data_wait_share"] for run in runs)
    return row
