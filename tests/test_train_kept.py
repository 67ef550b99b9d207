"""Runs on real ranks, killed, refused steps, robbed of disk space, damaged, stopped: what they keep and repeat.

Starting ranks is what costs, so runs that need no fault share two launches; each of the others is one test's own.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kept_runs import ENDLESS, Bench, Ended, opened_bench, spoil, wait_for

from tokenmill.manifests.verify import examine
from tokenmill.train.rows import read_rows

pytestmark = pytest.mark.slow

STAGES = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
GUARD = {"on_nan": "skip", "spike": {"factor": 1.5, "window": 3}, "on_spike": "skip"}
BAD = {"1": "nan", "6": "nan", "8": 1000}
BACK = {"on_nan": "roll_back", "leave_out": 3}
MOVED_MODEL = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}  # no dropout: it is drawn by rank
DAMAGES = {"flipped": "tensors-01-*", "removed": "tensors-00-*", "cut off": "checkpoint.json"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with opened_bench(tmp_path_factory.mktemp("kept")) as bench:
        yield bench


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


class Kept:
    """What became of runs that were trained in parts: the first ones, the killed ones, and the rest."""

    def __init__(self, bench: Bench, elsewhere: Path) -> None:
        self._bench = bench
        away = {"checkpoint_every": 2, "keep": 1, "milestone_every": 3, "checkpoints": elsewhere.as_uri()}
        bad = {f"{kind}-{stage}-{precision}": BAD for kind in ("whole", "broken") for stage, precision in STAGES}
        bad |= {run: {"5": "nan"} for run in ("back", "back-killed")}
        bench.trained(
            *(self.guarded("whole", *stage, 10) for stage in STAGES),
            *(self.guarded("broken", *stage, 7, 7) for stage in STAGES[:-1]),
            self.moved("steady", 2, 50), self.moved("moved", 2, 10),
            bench.job("back", guard=BACK, steps=8, checkpoint_every=2),
            *(bench.job(damage.replace(" ", "-"), steps=6, checkpoint_every=2, keep=2) for damage in DAMAGES),
            bench.job("only", steps=2),
            bench.job("away", steps=7, **away), bench.job("away", steps=10, **away),
            BAD_STEPS=json.dumps(bad),
        )  # fmt: skip
        self.before_damage = {damage: bench.figures(damage.replace(" ", "-")) for damage in DAMAGES}
        for damage, name in DAMAGES.items():
            spoil(next(bench.path(damage.replace(" ", "-"), "step-00000006").glob(name)), damage)
        last = self.guarded("broken", *STAGES[-1], 10, 3)
        killed_back = bench.job("back-killed", guard=BACK, steps=8, checkpoint_every=2)
        self.killed = [
            bench.train(last, BAD_STEPS=json.dumps(bad), TOKENMILL_FAULT="checkpoint:before-record:3"),
            bench.train(killed_back, BAD_STEPS=json.dumps(bad), TOKENMILL_FAULT="guard:noted"),
        ]
        bench.trained(self.moved("moved", 2, 20), ranks=1)
        del bad["back-killed"]  # what it left out is known by its log now
        self.second = bench.trained(
            *(self.guarded("broken", *stage, 10, 3) for stage in STAGES),
            self.moved("moved", 3, 50),
            killed_back,
            *(bench.job(damage.replace(" ", "-"), steps=7, checkpoint_every=2, keep=2) for damage in DAMAGES),
            BAD_STEPS=json.dumps(bad),
        )

    def guarded(self, kind: str, stage: int, precision: str, steps: int, every: int = 1) -> dict[str, Any]:
        return self._bench.job(f"{kind}-{stage}-{precision}", zero_stage=stage, precision=precision, guard=GUARD,
                               steps=steps, checkpoint_every=every)  # fmt: skip

    def moved(self, run: str, stage: int, steps: int) -> dict[str, Any]:
        return self._bench.job(run, zero_stage=stage, steps=steps, checkpoint_every=25, model=MOVED_MODEL, lr=1e-3,
                               global_packs_per_step=2, log_samples=True)  # fmt: skip


@pytest.fixture(scope="module")
def kept(bench: Bench, elsewhere: Path) -> Kept:
    return Kept(bench, elsewhere)


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_refused_steps_change_nothing_and_a_resumed_run_repeats_them_bit_for_bit(
    bench: Bench, kept: Kept, stage: int, precision: str
) -> None:
    """NaN in steps 1 and 6, a spike in 8; the second run went on from step 7, the last of them was killed there."""
    whole, broken = f"whole-{stage}-{precision}", f"broken-{stage}-{precision}"
    rows = bench.rows(whole)
    after = {step: bench.tensors(whole, step) for step in (1, 5, 6, 7, 8)}

    assert kept.killed[0].codes[0] == -signal.SIGKILL
    assert [row["step"] for row in rows if "skipped" in row] == [1, 6, 8]
    assert [row["loss"] for row in rows if row["step"] in (1, 6)] == [None, None]
    assert after[5] == after[6]
    assert after[7] == after[8]
    assert all(after[6][name] != after[7][name] for name in after[6] if name.endswith("exp_avg"))
    assert not any(any(data) for name, data in after[1].items() if "exp_avg" in name)
    assert bench.figures(broken) == bench.figures(whole)
    assert [row["step"] for row in bench.rows(whole, "guard")] == [1, 6, 8]
    assert bench.rows(broken, "guard") == bench.rows(whole, "guard")


def test_run_on_other_ranks_and_another_stage_repeats_its_losses(bench: Bench, kept: Kept) -> None:
    """10 steps on 2 ranks with ZeRO 2, 10 on one, 30 on 2 ranks with ZeRO 3."""
    steady, moved = bench.rows("steady"), bench.rows("moved")

    assert [row["step"] for row in moved] == list(range(1, 51))
    assert bench.rows("moved", "samples") == bench.rows("steady", "samples")
    for ours, theirs in zip(moved, steady, strict=True):
        rel = 1e-5 if ours["step"] <= 20 else 1e-4
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=rel), ours["step"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=rel), ours["step"]


def test_roll_back_leaves_the_window_out_even_when_killed_before_it_went_back(bench: Bench, kept: Kept) -> None:
    rows = bench.rows("back")
    (event,) = bench.rows("back", "guard")

    assert list(kept.killed[1].codes) == [-signal.SIGKILL] * 2
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if "skipped" in row] == [5]
    assert bench.figures("back-killed") == bench.figures("back")
    assert (event["step"], event["action"], event["to"], event["left_out"]) == (5, "roll_back", 4, [5, 5])
    assert bench.folder("back").read(8).guard["left_out"] == [[5, 5]]
    assert bench.tensors("back", 8) == bench.tensors("back-killed", 8)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_checkpoint_is_gone_round(bench: Bench, kept: Kept, damage: str) -> None:
    run = damage.replace(" ", "-")

    assert kept.second.log.count("step 6 is damaged, going on from step 4 instead") >= len(DAMAGES)
    assert bench.figures(run)[:6] == kept.before_damage[damage]
    assert bench.folder(run).steps() == [6, 7]


def test_checkpoints_elsewhere_are_kept_pruned_verified_and_gone_on_from(
    bench: Bench, kept: Kept, elsewhere: Path
) -> None:
    folder = bench.folder("away")
    names = [entry.name for entry in folder.read(10).files]

    assert folder.steps() == [3, 6, 9, 10]
    assert sorted(path.name for path in (elsewhere / "away").iterdir()) == [f"step-{n:08d}" for n in (3, 6, 9, 10)]
    assert bench.path("away", "latest").read_text() == "step-00000010\n"
    assert [row["step"] for row in bench.rows("away")] == list(range(1, 11))
    assert all(name.startswith(f"{elsewhere.as_uri()}/away/step-00000010/tensors-0") for name in names)
    assert examine(folder.store, "checkpoints/away", deep=True).faults == []
    next((elsewhere / "away" / "step-00000006").iterdir()).write_bytes(b"")
    (fault,) = examine(folder.store, "checkpoints/away", deep=False).faults
    assert "step-00000006" in fault.path


def test_run_whose_only_checkpoint_is_damaged_is_refused(bench: Bench, kept: Kept) -> None:
    folder = bench.path("only", "step-00000002")
    spoil(next(folder.glob("tensors-00-*")), "flipped")
    files = sorted(path.name for path in folder.iterdir())
    ended = bench.train(bench.job("only", steps=4))

    assert list(ended.codes) == [1, 1]
    assert "the only checkpoint of run only is damaged" in ended.errors[0]
    assert sorted(path.name for path in folder.iterdir()) == files


@pytest.mark.parametrize(
    ("guard", "bad", "told"),
    [
        ({}, (3,), "step 3 is refused: the loss is nan; lower train.lr"),
        ({"on_nan": "skip", "patience": 2}, (3, 4, 5, 6), "step 5 is refused like the 2 before it: the loss is nan"),
        (
            {"on_nan": "roll_back", "patience": 2},
            (2, 4, 6),
            "step 6 is refused after 2 returns to the checkpoint of step 0",
        ),
    ],
)
def test_run_that_does_not_recover_ends_and_says_so(
    bench: Bench, guard: dict[str, Any], bad: tuple[int, ...], told: str
) -> None:
    run = f"lost-{guard.get('on_nan', 'stop')}"
    steps = {run: dict.fromkeys(map(str, bad), "nan")}
    ended = bench.train(bench.job(run, steps=8, checkpoint_every=20, guard=guard), BAD_STEPS=json.dumps(steps))

    assert list(ended.codes) == [1, 1]
    assert all(told in ended.errors[rank] for rank in (0, 1))


def test_full_disk_ends_the_run_or_only_the_checkpoint_and_leaves_the_one_before(bench: Bench) -> None:
    if bench.small is None:
        pytest.skip("this machine lets nobody mount a file system of their own")

    def job(run: str, **changes: Any) -> dict[str, Any]:
        return bench.job(run, steps=6, checkpoint_every=2, checkpoints=str(bench.small), **changes)

    stopped = bench.train(job("full"))
    assert list(stopped.codes) == [1, 1]
    told = rf"{bench.small}/full/step-00000004: the disk is full: .* needs [\d,]+ bytes, [\d,]+ are free"
    assert re.search(told, stopped.errors[0]), stopped.errors
    assert bench.folder("full").steps() == [2]

    went_on = bench.train(bench.job("full", steps=6), job("full-2", on_save_error="continue"))
    assert bench.folder("full").steps() == [2, 6]
    assert "no checkpoint of step 2, training goes on" in went_on.log
    assert [row["step"] for row in bench.rows("full-2")] == list(range(1, 7))
    assert list(went_on.codes) == [1, 1], "the last checkpoint is needed"


def test_signal_to_one_rank_saves_and_ends_all_well(bench: Bench) -> None:
    pids = bench.start(bench.job("asked", steps=ENDLESS, checkpoint_every=ENDLESS))
    wait_for(lambda: bench.rows("asked"))
    os.kill(pids[1], signal.SIGUSR1)
    ended = bench.ended()

    assert list(ended.codes) == [0, 0]
    assert bench.folder("asked").steps() == [stopped_at(ended)]


def test_rank_that_dies_ends_the_others(bench: Bench) -> None:
    pids = bench.start(bench.job("dying", steps=ENDLESS))
    wait_for(lambda: bench.rows("dying"))
    os.kill(pids[1], signal.SIGKILL)
    ended = bench.ended()

    assert ended.codes == [1, -signal.SIGKILL]
    assert ended.errors[0]


def test_training_goes_on_while_a_checkpoint_is_written(bench: Bench) -> None:
    pids = bench.start(
        bench.job("behind", steps=ENDLESS, checkpoint_every=4), TOKENMILL_FAULT="checkpoint:before-tensors:2=hang"
    )
    wait_for(lambda: len(bench.rows("behind")) >= 12 and bench.folder("behind").steps() == [4])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    bench.ended()

    assert [row["step"] for row in bench.rows("behind")] == list(range(1, 13)), "the one that is due waits at 12"
    assert bench.path("behind", "latest").read_text() == "step-00000004\n"


def test_shard_that_turns_unreadable_costs_its_samples_alone_and_a_stop_file_ends_the_run(bench: Bench) -> None:
    shard = next((bench.root / "store" / "tokenize").rglob("*.tar"))
    whole = shard.read_bytes()
    bench.start(bench.job("unreadable", steps=ENDLESS, checkpoint_every=ENDLESS))
    wait_for(lambda: bench.rows("unreadable"))
    os.truncate(shard, len(whole) // 2)
    wait_for(lambda: sum(row["unreadable"] > 0 for row in bench.rows("unreadable")) > 2)
    bench.path("unreadable", "stop").touch()
    ended = bench.ended()
    shard.write_bytes(whole)

    assert list(ended.codes) == [0, 0], ended.log
    assert bench.folder("unreadable").steps() == [stopped_at(ended)]
    assert not bench.path("unreadable", "stop").exists()
    assert all(row["loss"] > 0 for row in bench.rows("unreadable"))
    faults = list(read_rows(bench.path("unreadable", "unreadable.jsonl")))
    assert {row["shard"] for row in faults} == {str(shard.relative_to(bench.root / "store"))}


def stopped_at(ended: Ended) -> int:
    """Return the step at which a run was stopped."""
    assert ended.result is not None
    assert ended.result["stopped"]
    return int(ended.result["step"])
