"""A tokenizer's training that is killed and resumed, on one rank and on two, ends as if nothing had happened.

With every loss there is: LPIPS, and a discriminator whose optimizer has to come back too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import save_file
from tests import raw_samples
from tests.lpips_weights import alex_linear, alex_weights
from tests.rank_server import RankServer

from tokenmill.manifests.storage import open_store
from tokenmill.manifests.verify import verify
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.job import TrainResult
from tokenmill.train.rows import read_rows
from tokenmill.train.vision_launch import figures, launch_tokenizer

STEPS, WARM_UP = 12, 4
SETTINGS: dict[str, Any] = {
    "shape": {"base_channels": 32, "hidden_size": 32, "codebook_size": 32},
    "batches": {"side": 32, "pictures": 16, "windows": 0.2, "larger": {2: 0.2}, "recolour": 0.5},
    "codebook": {"revive_every": 2}, "steps": STEPS, "warm_up_steps": WARM_UP, "rise_steps": 2, "checkpoint_every": 5,
    "measure_every": 6, "device": "cpu", "threads_per_rank": 1, "tensorboard": False,
}  # fmt: skip
GAN = {"weight": 0.5, "start_step": 3, "channels": 8, "layers": 2}


@dataclass(frozen=True)
class Bench:
    """A server of ranks, and the raw shards they train on."""

    server: RankServer
    folder: Path
    table: pl.DataFrame

    @property
    def losses(self) -> dict[str, Any]:
        """All of them."""
        perceptual = {"weight": 1.0, "weights": str(self.folder / "lpips.safetensors")}
        return {"l1": 0.5, "perceptual": perceptual, "adversarial": GAN}

    def train(self, run: str, ranks: int, *, kill: bool = False, **changes: Any) -> list[int]:
        """Train a run; with `kill` its ranks are killed at a random moment after the first checkpoint."""
        settings = TokenizerTraining.model_validate({**SETTINGS, "run": run, "ranks": ranks, **changes})
        job = raw_samples.job(self.folder, self.table, settings)
        report = self.folder / f"report-{run}-{random.getrandbits(32):x}"
        pids = self.server.start(job.model_dump_json(by_alias=True), report, ranks)
        if kill:
            after = random.randint(6, STEPS - 1)
            _wait_for_row(report / "rows.jsonl", after)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        codes = list(self.server.ended())
        assert kill or codes == [0] * ranks, (report / "log-00.txt").read_text()
        return codes

    def refused(self, table: pl.DataFrame, exit_code: int, **changes: Any) -> str:
        """Start a run that must end at once; returns what it says."""
        settings = TokenizerTraining.model_validate({**SETTINGS, **changes})
        report = self.folder / f"report-{random.getrandbits(32):x}"
        job = raw_samples.job(self.folder, table, settings)
        self.server.start(job.model_dump_json(by_alias=True), report, 1)
        assert list(self.server.ended()) == [exit_code]
        return str(json.loads((report / "error-00000.json").read_text())["message"])

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(read_rows(self.folder / "root/checkpoints/tokenizers" / name / "metrics.jsonl"))

    def run(self, name: str) -> RunFolder:
        return RunFolder(open_store(str(self.folder / "root")), f"tokenizers/{name}")

    def exported(self, run: str, name: str) -> bytes:
        return self.run(run).store.read_bytes(self.run(run).at(f"export/{name}"))

    def tensors(self, name: str) -> bytes:
        """The bytes of the last checkpoint's tensors: weights, averages, both optimizers, codebook, discriminator."""
        run = self.run(name)
        (entry,) = run.read(STEPS).files
        return run.store.read_bytes(f"{run.step_folder(STEPS)}/{entry.name}")


def _wait_for_row(rows: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(read_rows(rows))) < number:
        assert time.monotonic() < deadline, "no rows came"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("killed")
    rows = raw_samples.write_shard(folder / "scenes", raw_samples.scenes(24, side=64)) + raw_samples.write_clips(
        folder / "clips", 3
    )
    save_file(alex_weights() | alex_linear(), folder / "lpips.safetensors")
    with RankServer() as server:
        yield Bench(server, folder, raw_samples.listed(rows, held_out=(3, 9, 25)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_killed_at_a_random_step_and_resumed_ends_with_the_same_bytes(bench: Bench, ranks: int) -> None:
    bench.train(f"whole-{ranks}", ranks, losses=bench.losses)
    assert bench.train(f"killed-{ranks}", ranks, kill=True, losses=bench.losses) == [-signal.SIGKILL] * ranks
    resumed_from = bench.run(f"killed-{ranks}").steps()[-1]
    bench.train(f"killed-{ranks}", ranks, losses=bench.losses)
    assert 0 < resumed_from < STEPS
    saved = bench.run(f"killed-{ranks}").read(STEPS).tensors
    assert {
        "objective/stack.0.weight",
        "judge/0/exp_avg",
        "judge/0/step",
        "optimizer/encoder.conv_in.weight/exp_avg",
    } <= (saved.keys())
    assert bench.tensors(f"killed-{ranks}") == bench.tensors(f"whole-{ranks}")
    exact = ("step", "loss", "perceptual", "adversarial", "discriminator", "usage", "psnr_db")
    whole, killed = (
        [[row.get(name) for name in exact] for row in bench.rows(f"{kind}-{ranks}")] for kind in ("whole", "killed")
    )
    assert whole == killed
    weights = [bench.run(f"{kind}-{ranks}").at("export/model.safetensors") for kind in ("whole", "killed")]
    assert len({bench.run("").store.read_bytes(name) for name in weights}) == 1


def test_two_ranks_learn_what_one_learns_from_the_same_steps(bench: Bench) -> None:
    alone, both = ([row for row in bench.rows(f"whole-{ranks}") if row["step"] <= WARM_UP] for ranks in (1, 2))
    assert len(alone) == WARM_UP
    for one, two in zip(alone, both, strict=True):
        for figure in ("loss", "grad_norm", "crops", "side", "frames"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-5)


def test_begun_run_goes_on_with_other_ranks_and_refuses_other_samples_seed_and_damage(bench: Bench) -> None:
    bench.train("kept", 1, steps=2, warm_up_steps=1)
    exported = {name: bench.exported("kept", name) for name in ("model.safetensors", "training.json")}
    table = raw_samples.listed(bench.table.head(20).to_dicts())
    message = bench.refused(table, 2, run="kept", steps=4, warm_up_steps=1, seed=18)
    assert "'kept' was begun with other settings (seed 17 → 18; the list of samples)" in message
    more: dict[str, Any] = {"run": "kept", "warm_up_steps": 1, "losses": {"adversarial": {**GAN, "start_step": 0}}}
    bench.train(ranks=2, steps=4, **more)  # with a discriminator from here on
    assert bench.rows("kept")[2]["discriminator"] > 0
    other = {**more, "losses": {"adversarial": {**GAN, "channels": 16}}}
    assert "adversarial 8 channels, 2 layers → 16 channels, 2 layers" in bench.refused(bench.table, 2, steps=6, **other)
    final = bench.exported("kept", "model.safetensors")
    for name, before in exported.items():  # as if killed between the last checkpoint and its export
        bench.run("kept").store.put(bench.run("kept").at(f"export/{name}"), before)
    bench.train(ranks=1, steps=4, **more)
    assert bench.exported("kept", "model.safetensors") == final != exported["model.safetensors"]
    assert figures(bench.run("kept"))["step"] == 4
    assert bench.run("kept").steps() == [2, 4]
    assert [row["step"] for row in bench.rows("kept")] == [1, 2, 3, 4]
    run = bench.run("kept")
    (entry,) = run.read(4).files
    name = f"{run.step_folder(4)}/{entry.name}"
    data = bytearray(run.store.read_bytes(name))
    data[-5] ^= 1
    run.store.put(name, bytes(data))
    assert "sha256 differs" in bench.refused(bench.table, 1, steps=6, **more)


def test_launched_training_stopped_by_a_signal_saves_resumes_exports_and_is_then_left_alone(bench: Bench) -> None:
    settings = TokenizerTraining.model_validate({**SETTINGS, "run": "launched", "steps": 100_000})
    job = raw_samples.job(bench.folder, bench.table, settings)
    stopped = launch_tokenizer(job, on_row=lambda row: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.stopped
    assert bench.run("launched").steps() == [stopped.step]
    end = max(stopped.step, WARM_UP) + 2
    bench.train("launched", 1, steps=end)
    ended = settings.model_copy(update={"steps": end})
    job = raw_samples.job(bench.folder, bench.table, ended)
    export = "checkpoints/tokenizers/launched/export"
    assert launch_tokenizer(job) == TrainResult(step=end, total_steps=end, stopped=False, export=export)
    assert figures(bench.run("launched"))["measured"]["psnr_db"] > 0
    tokenizer = load_vision_tokenizer(bench.folder / "root" / export)
    assert tokenizer.codebook_size == 32
    assert not verify(open_store(str(bench.folder / "root")), "checkpoints/tokenizers/launched", deep=True)
