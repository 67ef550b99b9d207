"""A whole training run: killed, stopped, resumed, on other numbers of ranks, exported.

Four launches of real ranks, shared by the tests of this file; each costs some fifteen seconds, nearly all imports.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RunError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings, TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.launch import launch
from tokenmill.train.loader import PlanLoader
from tokenmill.train.rows import read_rows

pytestmark = pytest.mark.slow

STEPS = 6
SETTINGS: Mapping[str, Any] = {
    "device": "cpu", "steps": STEPS, "checkpoint_every": 2, "keep": 9, "global_packs_per_step": 4, "log_samples": True,
    "warmup_steps": 2, "schedule": "constant", "peak_tflops": 0.1,
    "model": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "dropout": 0.1},
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The store, an uninterrupted run `whole`, and what became of run `broken`."""

    root: Path
    plan: Plan
    seen: list[Mapping[str, Any]]
    whole: TrainResult
    killed: str
    stopped: TrainResult
    alone: TrainResult

    def rows(self, run: str, name: str = "metrics") -> list[dict[str, Any]]:
        return list(read_rows(self.root / "checkpoints" / run / f"{name}.jsonl"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("store")
    store = open_store(str(root))
    amounts = Amounts(images=60, texts=60, shards=1)
    plan = write_plan(
        store, [write_token_source(store, "mixed", byte_vocabulary(32), amounts)], PlanSettings(context=160)
    )
    seen: list[Mapping[str, Any]] = []

    whole = launch(job(root, plan, run="whole"), on_row=seen.append)
    killed = killed_while_saving(job(root, plan, run="broken"))
    stopped = launch(job(root, plan, run="broken", steps=100_000), on_row=terminate)
    loader = {"threads": 0, "check_digests": True}
    alone = launch(job(root, plan, run="broken", steps=stopped.step + 3, ranks=1, loader=loader))
    yield Trained(root, plan, seen, whole, killed, stopped, alone)


def job(root: Path, plan: Plan, **changes: Any) -> TrainJob:
    settings = TrainSettings.model_validate({**SETTINGS, **changes})
    return TrainJob(root=str(root), plan=plan.folder.path, settings=settings)


def killed_while_saving(broken: TrainJob) -> str:
    """Run until rank 0 is killed between the files and the record of the second checkpoint; returns what was told."""
    os.environ["TOKENMILL_FAULT"] = "checkpoint:before-record:2"
    try:
        with pytest.raises(RunError) as raised:
            launch(broken)
    finally:
        del os.environ["TOKENMILL_FAULT"]
    return str(raised.value)


def terminate(_row: Mapping[str, Any]) -> None:
    """Send SIGTERM to this process, as a scheduler would, when the first metrics come in."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_run_uninterrupted_finishes_and_its_loss_falls(trained: Trained) -> None:
    losses = [row["loss"] for row in trained.rows("whole")]

    assert trained.whole == TrainResult(step=STEPS, total_steps=STEPS, stopped=False, export="checkpoints/whole/export")
    assert losses[-1] < losses[0]
    assert [row["step"] for row in trained.seen] == list(range(1, STEPS + 1))


def test_run_killed_while_saving_leaves_the_checkpoint_before(trained: Trained) -> None:
    assert "rank 0 was killed by signal 9" in trained.killed


def test_run_killed_and_resumed_on_as_many_ranks_repeats_every_loss_bit_for_bit(trained: Trained) -> None:
    exact = ("step", "loss", "loss_text", "loss_vision", "grad_norm", "lr")
    whole, broken = ([tuple(row[name] for name in exact) for row in trained.rows(run)] for run in ("whole", "broken"))
    common = min(STEPS, trained.stopped.step)

    assert common > 2
    assert broken[:common] == whole[:common]


def test_run_stopped_by_a_signal_saves_where_it_is(trained: Trained) -> None:
    assert trained.stopped.stopped
    assert 3 <= trained.stopped.step < 100_000
    assert trained.stopped.step in RunFolder(open_store(str(trained.root)), "broken").steps()


def test_run_resumed_with_other_loader_settings_takes_them(trained: Trained) -> None:
    folder = RunFolder(open_store(str(trained.root)), "broken")
    before, after = (folder.read(step).settings["loader"] for step in (trained.stopped.step, trained.alone.step))

    assert (before["threads"], before["check_digests"]) == (2, False)
    assert (after["threads"], after["check_digests"]) == (0, True)


def test_run_resumed_on_one_rank_instead_of_two_reads_the_same_samples_step_by_step(trained: Trained) -> None:
    loader = PlanLoader(trained.plan, byte_vocabulary(32), global_packs=4)
    expected = [
        sorted((asdict(sample) for sample in loader.step(step).samples), key=lambda s: (s["pack"], s["slot"]))
        for step in range(trained.alone.step)
    ]

    assert trained.alone.finished
    assert [row["samples"] for row in trained.rows("broken", "samples")] == expected
    assert [row["samples"] for row in trained.rows("whole", "samples")] == expected[:STEPS]
    assert [row["step"] for row in trained.rows("broken")] == list(range(1, trained.alone.step + 1))


def test_run_metrics_hold_what_a_run_is_watched_by(trained: Trained) -> None:
    filled = {name for row in trained.rows("whole") for name, value in row.items() if value is not None}

    assert filled >= {"loss", "loss_text", "loss_vision", "lr", "grad_norm", "tokens_per_s", "data_wait_s", "mfu"}
    (events,) = (trained.root / "checkpoints" / "whole" / "tensorboard").iterdir()
    assert events.stat().st_size > 500


def test_export_opens_in_transformers_and_names_its_vocabulary(trained: Trained) -> None:
    from transformers import Emu3ForCausalLM

    folder = trained.root / "checkpoints" / "whole" / "export"
    model = Emu3ForCausalLM.from_pretrained(folder)
    about = json.loads((folder / "tokenmill.json").read_text())

    assert model.config.vocab_size == byte_vocabulary(32).size
    assert about["vocabulary"] == byte_vocabulary(32).spec
    assert about["vocabulary_fingerprint"] == byte_vocabulary(32).fingerprint
    assert (about["plan"], about["step"]) == (trained.plan.plan_id, STEPS)


def test_run_that_is_finished_starts_no_rank_again(trained: Trained) -> None:
    before = trained.rows("whole")
    logs = trained.root / "checkpoints" / "whole" / "logs" / "log-00.txt"
    logs.unlink()

    again = launch(job(trained.root, trained.plan, run="whole"))

    assert again == trained.whole
    assert trained.rows("whole") == before
    assert not logs.exists()
