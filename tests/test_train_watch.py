"""Watching a run: flops, the progress line, and trackers that never end a training."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from tokenmill.errors import RecipeError
from tokenmill.settings_train import ModelSettings, TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.flops import ModelFlops
from tokenmill.train.model import model_config, weightless
from tokenmill.train.progress import StepSums, TrainingProgress, duration, tell_steps
from tokenmill.train.trackers import TrackerThread, check_trackers, figures_of, open_trackers

ROW = {
    "step": 3, "loss": 2.0, "loss_text": 1.5, "loss_vision": 2.5, "tokens": 1000, "step_s": 2.0, "data_wait_s": 0.1,
    "memory_gib": 1.25, "mfu": 0.4, "eta_s": 3700.0,
}  # fmt: skip


def test_flops_leave_out_the_embedding_and_count_attention_inside_documents() -> None:
    vocabulary = byte_vocabulary(8)
    model = weightless(model_config(ModelSettings(hidden=32, layers=3, heads=4, kv_heads=2, ffn=48), vocabulary, 64))

    found = ModelFlops.of(model.causal)

    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48
    assert found.matrix_parameters == 3 * layer + 32 * vocabulary.size
    assert found.attention_width == 3 * 32
    assert found.training(10, 4 * 4 + 6 * 6) == 6 * found.matrix_parameters * 10 + 6 * 96 * 52


def test_flops_of_tied_embeddings_and_wide_heads_count_the_output_layer_once() -> None:
    config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=16,
                         num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True)  # fmt: skip
    with torch.device("meta"):
        found = ModelFlops.of(LlamaForCausalLM(config))

    assert found.matrix_parameters == 32 * (64 + 16 + 16) + 64 * 32 + 3 * 32 * 48 + 100 * 32
    assert found.attention_width == 64


def test_progress_line_sums_up_the_steps_since_the_last(caplog: pytest.LogCaptureFixture) -> None:
    progress = TrainingProgress("train", 2000, tell_steps, quiet=True, every_s=0.0)
    caplog.set_level(logging.INFO, "tokenmill")

    progress(ROW)
    progress(ROW | {"step": 4, "tokens": 3000, "data_wait_s": 0.0, "loss_text": None, "eta_s": 42.0})

    first, second = caplog.messages
    assert first == (
        "train: step 3/2,000  loss 2.0000 (text 1.5000, vision 2.5000)  500 ids/s  MFU 0.40  data wait 5.0 %  1.2 GiB"
        "  ETA 1 h 1 min"
    )
    assert "4/2,000  loss 2.0000 (vision 2.5000)  1,500 ids/s" in second and second.endswith("ETA 42 s")
    told = progress.launch.to_json()
    assert told["tokens_per_s"] == 1000 and told["data_wait"] == pytest.approx(0.025)


def test_progress_between_lines_is_silent_and_on_a_terminal_a_bar(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "tokenmill")
    TrainingProgress("train", None, tell_steps, quiet=True)(ROW)
    assert not caplog.messages

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = TrainingProgress("train", 5, tell_steps)
    progress(ROW)
    progress.close()

    shown = capsys.readouterr().err
    assert "3/5" in shown and "ETA 1 h 1 min" in shown


def test_rows_without_speeds_are_told_as_far_as_they_go() -> None:
    sums = StepSums()
    assert sums.to_json() == {}
    sums.add({"step": 1, "loss": 3.0})

    assert tell_steps(sums) == "loss 3.0000  0.0 GiB"
    sums.add({"step": 2, "loss": None, "loss_text": None, "skipped": "left out after a roll back", "tokens": 0})
    assert tell_steps(sums) == "loss –  0.0 GiB"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7200, "2 h 0 min"), (100_000, "1 d 3 h")]
)
def test_durations_are_told_in_two_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_figures_of_a_row_are_its_numbers_by_name() -> None:
    row = {"step": 4, "loss": 2, "by_template": {"caption": 1.5}, "note": "text", "loss_text": None, "skipped": True}

    assert figures_of(row, "train") == {"train/loss": 2, "train/by_template/caption": 1.5}


class _Kept:
    """A tracker that keeps its rows, or fails at one."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.rows: list[int] = []
        self.closed = False
        self._fails_at = fails_at

    def add(self, figures: Mapping[str, float], step: int) -> None:
        if step == self._fails_at:
            raise ConnectionError("the service\nis gone")
        self.rows.append(step)

    def close(self) -> None:
        self.closed = True


def test_tracker_gets_every_row_before_the_end() -> None:
    kept = _Kept()
    thread = TrackerThread("kept", lambda: kept)
    for step in range(50):
        thread.add({"step": step, "loss": 1.0})
    thread.close()

    assert kept.rows == list(range(50)) and kept.closed


def test_tracker_that_fails_is_told_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    kept = _Kept(fails_at=2)
    thread = TrackerThread("kept", lambda: kept)
    for step in range(4):
        thread.add({"step": step, "loss": 1.0})
    thread.close()

    assert kept.rows == [0, 1] and not kept.closed
    assert isinstance(thread.failure, ConnectionError)
    (message,) = caplog.messages
    assert message == "kept: ConnectionError: the service is gone; the run goes on without it"
    thread.add({"step": 9, "loss": 1.0})


def test_tracker_that_hangs_costs_its_rows_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    def hangs() -> Any:
        released.wait(60)
        return _Kept()

    thread = TrackerThread("slow", hangs, close_s=0.05)
    for step in range(1100):
        thread.add({"step": step, "loss": 1.0})
    thread.close()
    released.set()

    assert thread.dropped == 100
    assert "still not done" in caplog.messages[0] and "100 rows were not sent" in caplog.messages[1]


def test_tracker_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings.model_validate({"trackio": {}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(RecipeError, match=r"train.trackio: .* pip install 'tokenmill\[trackio\]'"):
        check_trackers(settings)
    check_trackers(TrainSettings())


def test_tracker_settings_with_an_unknown_key_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"wandb\.modus"):
        TrainSettings.model_validate({"wandb": {"modus": "offline"}})


@pytest.mark.slow
def test_wandb_offline_and_trackio_keep_a_run_that_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not all(find_spec(name) for name in ("wandb", "trackio")):
        pytest.skip("wandb or trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    settings = TrainSettings.model_validate({"run": "main", "wandb": {"mode": "offline"}, "trackio": {}})

    for start in (0, 2):
        trackers = open_trackers(settings, tmp_path, "abc123")
        for step in range(start, start + 3):
            for tracker in trackers:
                tracker.add({"step": step + 1, "loss": 1.0 / (step + 1)})
        for tracker in trackers:
            tracker.close()
        assert [tracker.failure for tracker in trackers] == [None, None], caplog.text

    offline = list((tmp_path / "wandb").glob("offline-run-*-abc123/*.wandb"))
    assert offline and all(path.stat().st_size > 0 for path in offline)
    with closing(sqlite3.connect(tmp_path / "trackio" / "tokenmill.db")) as database:
        steps = database.execute("SELECT step FROM metrics ORDER BY step").fetchall()
    assert [step for (step,) in steps] == [1, 2, 3, 3, 4, 5]
