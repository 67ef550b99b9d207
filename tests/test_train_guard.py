"""The guard by itself: what it refuses, that a resumed one judges alike, and what its log keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenmill.manifests.storage import open_store
from tokenmill.settings_keeping import GuardSettings
from tokenmill.settings_train import TrainSettings
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.guard import Guard, Verdict
from tokenmill.train.guard_log import GuardLog
from tokenmill.train.rows import read_rows
from tokenmill.train.stop_file import StopFile

SPIKES: dict[str, Any] = {"spike": {"factor": 2.0, "window": 3}, "on_spike": "skip", "on_nan": "roll_back"}


def guard_of(**changes: Any) -> Guard:
    return Guard(GuardSettings.model_validate({**SPIKES, **changes}))


def goes_through(guard: Guard, losses: list[float]) -> list[str | None]:
    """Judge losses one after the other as the loop does; returns what is done about each."""
    actions: list[str | None] = []
    for loss in losses:
        verdict = guard.judge(loss)
        actions.append(verdict.action if verdict else None)
        if verdict is None:
            guard.took(loss)
    return actions


def test_spike_is_judged_by_the_median_of_steps_that_were_taken() -> None:
    found = goes_through(guard_of(), [9.0, 1.0, 1.0, 2.1, 2.0, 2.5, 5.0, 100.0, 4.0])

    assert found == [None, None, None, "skip", None, "skip", "skip", "skip", "skip"]


def test_loss_that_is_no_number_is_refused_from_the_first_step_on_and_moves_no_median() -> None:
    found = goes_through(guard_of(), [math.nan, 1.0, math.inf, 1.0, 1.0, 1.9])

    assert found == ["roll_back", None, "roll_back", None, None, None]


def test_gradient_that_is_no_number_is_refused_like_such_a_loss() -> None:
    verdict = guard_of().judge(1.0, math.inf)

    assert verdict == Verdict("the gradient's norm is inf", "roll_back")
    assert guard_of().judge(1.0, 3.0) is None


@given(st.lists(st.floats(0.1, 9.0) | st.just(math.nan), max_size=30), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_guard_that_goes_on_from_a_state_judges_as_the_one_that_never_stopped(losses: list[float], cut: int) -> None:
    whole, before, after = guard_of(), guard_of(), guard_of()
    expected = goes_through(whole, losses)

    found = goes_through(before, losses[:cut])
    after.load(before.state())
    found += goes_through(after, losses[cut:])

    assert found == expected
    assert after.state() == whole.state()


def test_guard_log_counts_the_refused_steps_directly_before_one(tmp_path: Path) -> None:
    log = GuardLog(RunFolder(open_store(str(tmp_path)), "main"), 0)
    for step in (2, 5, 6):
        log.add(row(step), Verdict("high", "skip"))

    assert [log.refused_before(step) for step in (2, 3, 4, 6, 7, 8)] == [0, 1, 0, 1, 2, 0]


@pytest.mark.parametrize(("most", "first"), [(None, 101), (5, 116), (50, 101)])
def test_window_that_is_left_out_ends_with_the_bad_step_and_begins_behind_the_checkpoint(
    most: int | None, first: int
) -> None:
    guard = guard_of(leave_out=most)
    guard.leave_out(guard.first_left_out(120, 100), 120)

    assert [step for step in range(90, 130) if guard.leaves_out(step)] == list(range(first, 121))


def test_guard_log_cut_back_keeps_returns_and_tells_the_guard_their_windows(tmp_path: Path) -> None:
    folder = RunFolder(open_store(str(tmp_path)), "main")
    log = GuardLog(folder, 0)
    log.add(row(3), Verdict("high", "skip"))
    log.add(row(7), Verdict("high", "skip"))
    log.add(row(9), Verdict("nan", "roll_back"), to=4, left_out=[5, 9])

    guard, again = guard_of(), GuardLog(folder, 0)
    again.begin(guard, 4)

    assert [row["step"] for row in read_rows(tmp_path / "checkpoints" / "main" / "guard.jsonl")] == [3, 9]
    assert [step for step in range(1, 12) if guard.leaves_out(step)] == [5, 6, 7, 8, 9]
    assert (again.returns_to(4), again.returns_to(5)) == (1, 0)
    assert GuardLog(folder, 1).returns_to(4) == 1


def test_guard_log_of_another_rank_than_the_first_writes_nothing(tmp_path: Path) -> None:
    log = GuardLog(RunFolder(open_store(str(tmp_path)), "main"), 1)
    log.add(row(3), Verdict("high", "skip"))

    assert not list(tmp_path.iterdir())


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": math.nan, "grad_norm": None, "lr": 1e-3}


def test_stop_file_is_seen_by_the_first_rank_alone_and_removed_once_obeyed(tmp_path: Path) -> None:
    folder = RunFolder(open_store(str(tmp_path)), "main")
    folder.store.put(folder.at("stop"), b"")
    first, second = StopFile(folder, 0), StopFile(folder, 1)

    assert (bool(first), bool(second)) == (True, False)
    second.obeyed()
    assert folder.store.exists(folder.at("stop"))
    first.obeyed()
    assert not folder.store.exists(folder.at("stop"))
    assert not StopFile(folder, 0)


@pytest.mark.parametrize(
    "guard", [{"on_nan": "ignore"}, {"spike": {"factor": 1.0}}, {"spike": {"window": 1}}, {"patience": 0}]
)
def test_guard_settings_that_mean_nothing_are_refused(guard: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="guard"):
        TrainSettings.model_validate({"guard": guard})
