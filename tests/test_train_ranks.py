"""The launcher: ranks that die are named, their mates ended, all started anew; signals reach them at any moment."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tokenmill.errors import DivergedError, RecipeError
from tokenmill.manifests.storage import open_store
from tokenmill.train import ranks as ranks_module
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.ranks import DeadRankError, RankGroup
from tokenmill.train.restarts import run_ranks_again


def run(folder: Path, starts: Sequence[Sequence[str]], restarts: int = 0) -> dict[str, Any] | None:
    """Run ranks that do as told (tests/dying_rank.py), a list of words for every start; returns what they report."""
    group = RankGroup(
        module="tests.dying_rank",
        job=json.dumps({"folder": str(folder), "starts": starts}),
        folder=RunFolder(open_store(str(folder)), "main"),
        ranks=len(starts[0]),
        threads_per_rank=1,
        device="cpu",
    )
    return run_ranks_again(group, None, lambda: len(list(folder.glob("step-*"))), restarts=restarts, wait_s=0.05)


def started(folder: Path, rank: int = 0) -> list[float]:
    """Return when a rank was started, each time."""
    path = folder / f"starts-{rank}"
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["well", "killed"], DeadRankError, "rank 1 was killed by signal 9; run again"),
        (["fails", "killed"], DeadRankError, "rank 1 was killed by signal 9"),
        (
            ["well", "silent"],
            DeadRankError,
            "rank 1 ended with exit code 3; the last lines of its log:\nthe last words",
        ),
        (["well", "fails"], DeadRankError, "rank 1 fails"),
        (["diverges", "diverges"], DivergedError, "rank 0 diverges"),
        (["well", "recipe"], RecipeError, "rank 1 recipe"),
    ],
)
def test_rank_that_ends_badly_is_named(tmp_path: Path, words: list[str], error: type[Exception], told: str) -> None:
    with pytest.raises(error) as raised:
        run(tmp_path, [words])

    assert told in str(raised.value)
    assert (tmp_path / "checkpoints" / "main" / "logs" / "log-01.txt").exists()


def test_rank_that_waits_for_a_dead_one_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "_GRACE_ALONE_S", 0.2)
    before = time.monotonic()

    with pytest.raises(DeadRankError, match="rank 0 was killed by signal 9"):
        run(tmp_path, [["killed", "waits"]])

    assert time.monotonic() - before < 30


def test_ranks_are_started_anew_until_they_end_well(tmp_path: Path) -> None:
    found = run(tmp_path, [["killed", "well"], ["well", "silent"], ["well", "well"]], restarts=2)

    assert found is not None
    assert found["step"] == 7
    assert len(started(tmp_path, 1)) == 3


def test_restarts_are_given_back_by_a_checkpoint_and_spent_without_one(tmp_path: Path) -> None:
    with pytest.raises(DeadRankError, match="rank 0 was killed"):
        run(tmp_path, [["killed"], ["killed saves"], ["killed"], ["well"]], restarts=1)

    assert len(started(tmp_path)) == 3


@pytest.mark.parametrize("word", ["diverges", "recipe"])
def test_what_another_start_would_meet_again_is_not_tried_again(tmp_path: Path, word: str) -> None:
    with pytest.raises((DivergedError, RecipeError)):
        run(tmp_path, [[word], ["well"]], restarts=5)

    assert len(started(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_while_ranks_still_import_makes_them_stop_well(tmp_path: Path, number: signal.Signals) -> None:
    with signalled(number, when=lambda: len(started(tmp_path)) > 0):
        found = run(tmp_path, [["until_asked slowly", "until_asked slowly"]])

    assert found is not None
    assert found["stopped"]


def test_signal_between_two_starts_ends_the_waiting(tmp_path: Path) -> None:
    group_waits = threading.Event()

    class Watching:
        """Says that the ranks are dead: progress is asked for then."""

        asked = 0

        def __call__(self) -> int:
            self.asked += 1
            if self.asked == 2:
                group_waits.set()
            return 0

    group = RankGroup(
        module="tests.dying_rank", job=json.dumps({"folder": str(tmp_path), "starts": [["killed"], ["well"]]}),
        folder=RunFolder(open_store(str(tmp_path)), "main"), ranks=1, threads_per_rank=1, device="cpu",
    )  # fmt: skip
    with signalled(signal.SIGTERM, when=group_waits.is_set):
        found = run_ranks_again(group, None, Watching(), restarts=3, wait_s=50.0)

    assert found is None
    assert len(started(tmp_path)) == 1


class signalled:  # noqa: N801
    """Send a signal to this process from another thread, once something holds."""

    def __init__(self, number: signal.Signals, when: Any) -> None:
        self._number, self._when = number, when
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)

    def _send(self) -> None:
        deadline = time.monotonic() + 30
        while not self._when() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), self._number)
