"""Runs on real ranks, killed, refused steps, robbed of disk space, damaged, stopped: what they keep and repeat."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kept_runs import ENDLESS, Bench, opened_bench, wait_for

from tokenmill.manifests.verify import examine
from tokenmill.train.rows import read_rows

pytestmark = pytest.mark.slow

STAGES = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")]
GUARD = {"on_nan": "skip", "spike": {"factor": 1.5, "window": 3}, "on_spike": "skip"}
BAD = json.dumps({"1": "nan", "6": "nan", "8": 1000})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with opened_bench(tmp_path_factory.mktemp("kept")) as bench:
        yield bench


def test_refused_steps_change_nothing_and_a_killed_run_repeats_them_bit_for_bit(bench: Bench) -> None:
    """For every stage: NaN in steps 1 and 6, a spike in 8; the second run goes on from 7, the last one is killed."""

    def job(kind: str, stage: int, precision: str, steps: int, every: int = 1) -> dict[str, object]:
        return bench.job(f"{kind}-{stage}-{precision}", zero_stage=stage, precision=precision, guard=GUARD, steps=steps,
                         checkpoint_every=every)  # fmt: skip

    first = [job("whole", *stage, 10) for stage in STAGES] + [job("broken", *stage, 7, 7) for stage in STAGES[:-1]]
    second = [job("broken", *stage, 10, 3) for stage in STAGES]
    bench.trained(*first, BAD_STEPS=BAD)
    killed = bench.train(*second, BAD_STEPS=BAD, TOKENMILL_FAULT="checkpoint:before-record:11")
    bench.trained(second[-1], BAD_STEPS=BAD)

    assert killed.codes[0] == -signal.SIGKILL
    for stage, precision in STAGES:
        whole, broken = f"whole-{stage}-{precision}", f"broken-{stage}-{precision}"
        rows = bench.rows(whole)
        assert [row["step"] for row in rows if "skipped" in row] == [1, 6, 8]
        assert [row["loss"] for row in rows if row["step"] in (1, 6)] == [None, None]
        after = {step: bench.tensors(whole, step) for step in (1, 2, 5, 6, 7, 8, 9)}
        assert after[5] == after[6], (stage, precision)
        assert after[7] == after[8], (stage, precision)
        assert all(after[6][name] != after[7][name] for name in after[6] if name.endswith("exp_avg"))
        assert not any(any(data) for name, data in after[1].items() if "exp_avg" in name)
        assert bench.figures(broken) == bench.figures(whole), (stage, precision)
        assert [row["step"] for row in bench.rows(whole, "guard")] == [1, 6, 8]
        assert bench.rows(broken, "guard") == bench.rows(whole, "guard")


def test_run_on_other_ranks_and_another_stage_repeats_its_losses(bench: Bench) -> None:
    """2 ranks with ZeRO 2, then 1 rank, then 2 ranks with ZeRO 3."""

    def job(run: str, stage: int, steps: int) -> dict[str, object]:
        model = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}
        return bench.job(
            run, zero_stage=stage, steps=steps, checkpoint_every=25, model=model, lr=1e-3, log_samples=True
        )

    bench.trained(job("steady", 2, 50), job("moved", 2, 10))
    bench.trained(job("moved", 2, 20), ranks=1)
    bench.trained(job("moved", 3, 50))

    steady, moved = bench.rows("steady"), bench.rows("moved")
    assert [row["step"] for row in moved] == list(range(1, 51))
    assert [row["samples"] for row in bench.rows("moved", "samples")] == [
        row["samples"] for row in bench.rows("steady", "samples")
    ]
    for ours, theirs in zip(moved, steady, strict=True):
        rel = 1e-5 if ours["step"] <= 20 else 1e-4
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=rel), ours["step"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=rel), ours["step"]


def test_roll_back_leaves_the_window_out_even_when_killed_before_it_went_back(bench: Bench) -> None:
    guard = {"on_nan": "roll_back", "leave_out": 3}
    whole, broken = (bench.job(run, guard=guard, steps=8, checkpoint_every=2) for run in ("back", "back-killed"))
    bench.trained(whole, BAD_STEPS='{"5": "nan"}')
    killed = bench.train(broken, BAD_STEPS='{"5": "nan"}', TOKENMILL_FAULT="guard:noted")
    bench.trained(broken)

    assert list(killed.codes) == [-signal.SIGKILL] * 2
    rows = bench.rows("back")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if "skipped" in row] == [5]
    assert bench.figures("back-killed") == bench.figures("back")
    (event,) = bench.rows("back", "guard")
    assert (event["step"], event["action"], event["to"], event["left_out"]) == (5, "roll_back", 4, [5, 5])
    assert bench.folder("back").read(8).guard["left_out"] == [[5, 5]]
    assert bench.tensors("back", 8) == bench.tensors("back-killed", 8)


def test_run_that_does_not_recover_ends_and_says_so(bench: Bench) -> None:
    bad = json.dumps({str(step): "nan" for step in range(3, 9)})
    stopped = bench.train(bench.job("stops", steps=8), BAD_STEPS=bad)
    skipped = bench.train(bench.job("skips", steps=8, guard={"on_nan": "skip", "patience": 2}), BAD_STEPS=bad)
    backed = bench.train(
        bench.job("backs", steps=8, checkpoint_every=2, guard={"on_nan": "roll_back", "patience": 2}), BAD_STEPS=bad
    )
    far = bench.train(
        bench.job("far", steps=9, checkpoint_every=20, guard={"on_nan": "roll_back", "patience": 2}),
        BAD_STEPS='{"2": "nan", "4": "nan", "6": "nan"}',
    )

    assert [list(one.codes) for one in (stopped, skipped, backed, far)] == [[1, 1]] * 4
    assert "step 3 is refused: the loss is nan; lower train.lr" in stopped.errors[0]
    assert "step 5 is refused like the 2 before it: the loss is nan" in skipped.errors[1]
    assert "step 5 is refused like the 2 before it: the loss is nan" in backed.errors[0]
    assert "step 6 is refused after 2 returns to the checkpoint of step 0" in far.errors[0]


@pytest.mark.parametrize("damage", ["flipped", "removed", "record"])
def test_damaged_newest_checkpoint_is_gone_round(bench: Bench, damage: str) -> None:
    run = f"damaged-{damage}"
    bench.trained(bench.job(run, steps=6, checkpoint_every=2, keep=2))
    before = bench.figures(run)
    spoil(bench, run, 6, damage)
    ended = bench.trained(bench.job(run, steps=7, checkpoint_every=2, keep=2))

    assert "step 6 is damaged, going on from step 4 instead" in ended.log
    assert bench.figures(run)[:6] == before
    assert bench.folder(run).steps() == [6, 7]


def test_run_whose_only_checkpoint_is_damaged_is_refused(bench: Bench) -> None:
    bench.trained(bench.job("only", steps=2))
    spoil(bench, "only", 2, "flipped")
    files = sorted(path.name for path in bench.path("only", "step-00000002").iterdir())
    ended = bench.train(bench.job("only", steps=4))

    assert list(ended.codes) == [1, 1]
    assert "the only checkpoint of run only is damaged" in ended.errors[0]
    assert sorted(path.name for path in bench.path("only", "step-00000002").iterdir()) == files


def spoil(bench: Bench, run: str, step: int, damage: str) -> None:
    folder = bench.path(run, f"step-{step:08d}")
    tensors = sorted(folder.glob("tensors-01-*"))[0]
    if damage == "flipped":
        data = bytearray(tensors.read_bytes())
        data[-5] ^= 1
        tensors.write_bytes(bytes(data))
    elif damage == "removed":
        tensors.unlink()
    else:
        record = folder / "checkpoint.json"
        record.write_bytes(record.read_bytes()[:300])


def test_full_disk_ends_the_run_or_only_the_checkpoint_and_leaves_the_one_before(bench: Bench) -> None:
    if bench.small is None:
        pytest.skip("this machine lets nobody mount a file system of their own")

    def job(run: str, **changes: object) -> dict[str, object]:
        return bench.job(run, steps=6, checkpoint_every=2, checkpoints=str(bench.small), **changes)

    stopped = bench.train(job("full"))
    assert list(stopped.codes) == [1, 1]
    told = rf"{bench.small}/full/step-00000004: the disk is full: .* needs [\d,]+ bytes, [\d,]+ are free"
    assert re.search(told, stopped.errors[0]), stopped.errors
    assert bench.folder("full").steps() == [2]
    bench.trained(bench.job("full", steps=6))
    assert bench.folder("full").steps() == [2, 6]

    went_on = bench.train(bench.job("full", steps=6), job("full-2", on_save_error="continue"))
    assert "no checkpoint of step 2, training goes on" in went_on.log
    assert [row["step"] for row in bench.rows("full-2")] == list(range(1, 7))
    assert list(went_on.codes) == [1, 1], "the last checkpoint is needed"


def test_stop_file_and_a_signal_to_one_rank_save_and_end_well(bench: Bench) -> None:
    job = bench.job("asked", steps=ENDLESS, checkpoint_every=ENDLESS)
    bench.start(job)
    wait_for(lambda: bench.rows("asked"))
    bench.path("asked", "stop").touch()
    by_file = bench.ended()
    pids = bench.start(job)
    wait_for(lambda: len(bench.rows("asked")) > steps_of(by_file))
    os.kill(pids[1], signal.SIGUSR1)
    by_signal = bench.ended()

    assert [list(by_file.codes), list(by_signal.codes)] == [[0, 0]] * 2
    assert steps_of(by_signal) > steps_of(by_file)
    assert bench.folder("asked").steps() == [steps_of(by_file), steps_of(by_signal)]
    assert not bench.path("asked", "stop").exists()


def steps_of(ended: object) -> int:
    result = ended.result  # type: ignore[attr-defined]
    assert result["stopped"]
    return int(result["step"])


def test_rank_that_dies_ends_the_others(bench: Bench) -> None:
    pids = bench.start(bench.job("dying", steps=ENDLESS))
    wait_for(lambda: bench.rows("dying"))
    os.kill(pids[1], signal.SIGKILL)
    ended = bench.ended()

    assert ended.codes[1] == -signal.SIGKILL
    assert ended.codes[0] == 1
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


def test_checkpoints_elsewhere_are_kept_pruned_verified_and_gone_on_from(bench: Bench, tmp_path: Path) -> None:
    changes = {"checkpoint_every": 2, "keep": 1, "milestone_every": 3, "checkpoints": tmp_path.as_uri()}
    bench.trained(bench.job("away", steps=7, **changes), bench.job("away", steps=10, **changes))

    assert bench.folder("away").steps() == [3, 6, 9, 10]
    assert sorted(path.name for path in (tmp_path / "away").iterdir()) == [f"step-{n:08d}" for n in (3, 6, 9, 10)]
    assert bench.path("away", "latest").read_text() == "step-00000010\n"
    assert [row["step"] for row in bench.rows("away")] == list(range(1, 11))
    names = [entry.name for entry in bench.folder("away").read(10).files]
    assert all(name.startswith(f"{tmp_path.as_uri()}/away/step-00000010/tensors-0") for name in names)
    folder = bench.folder("away")
    assert examine(folder.store, "checkpoints/away", deep=True).faults == []
    next((tmp_path / "away" / "step-00000006").iterdir()).write_bytes(b"")
    (fault,) = examine(folder.store, "checkpoints/away", deep=False).faults
    assert "step-00000006" in fault.path


def test_shard_that_turns_unreadable_while_training_costs_its_samples_alone(bench: Bench) -> None:
    shards = sorted((bench.root / "store").glob("tokens/**/*.tar"))
    whole = shards[0].read_bytes()
    bench.start(bench.job("unreadable", steps=ENDLESS))
    wait_for(lambda: bench.rows("unreadable"))
    os.truncate(shards[0], len(whole) // 2)
    wait_for(lambda: sum(row["unreadable"] > 0 for row in bench.rows("unreadable")) > 2)
    bench.path("unreadable", "stop").touch()
    ended = bench.ended()
    shards[0].write_bytes(whole)

    assert list(ended.codes) == [0, 0], ended.log
    assert all(row["loss"] > 0 for row in bench.rows("unreadable"))
    faults = list(read_rows(bench.path("unreadable", "unreadable.jsonl")))
    assert {row["shard"] for row in faults} == {str(shards[0].relative_to(bench.root / "store"))}
