"""Deadlines, drains and pools at their edges, without a cluster: who is blamed, who is killed, who is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError
from tests import tiny
from tests.stages import folder_at, run, units_of

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.storage_retry import Patience
from tokenmill.pipelines import metrics
from tokenmill.pipelines.deadlines import UnitTimeoutError, raised_deadline
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.execution_halves import _Compute
from tokenmill.pipelines.execution_ray import Clock, PassLimits, lost_units
from tokenmill.pipelines.pools import stage_pool
from tokenmill.pipelines.ray_cluster import WorkerPool, _for_workers
from tokenmill.pipelines.ray_desk import Desk, DeskState, Hand, Place, _Desk, born_at, kill_process
from tokenmill.recipe import check_recipe

LIMITS = PassLimits(unit_timeout_s=10, start_timeout_s=5)
HERE = Place(node="node", pid=1, born=1, name="here:1")
POOLS = {"decode": WorkerPool(workers=2), "models": WorkerPool(workers=1, gpus=1.0)}


class StubDesk(Desk):
    """A desk whose state the test says; `ended` are the places it was told to end."""

    def __init__(self, state: DeskState) -> None:
        self.now, self.closed, self.ended = state, False, []

    def close(self) -> None:
        self.closed = True

    def state(self) -> DeskState:
        return self.now

    def kill_overdue(self, state: DeskState, returned: set[int], limit_s: float) -> None:
        self.ended += [hand.place for hand in state.hands if hand.index not in returned and hand.held_s > limit_s]


class RemoteDesk:
    """A desk's handle whose calls run here and now."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._desk, name))


def _desk_without_a_cluster() -> Desk:
    """Return a driver's desk whose tasks run here and now."""

    def remote(task: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda place: (place, task(place))))

    desk = object.__new__(Desk)
    desk._killed, desk._kills = set(), {}
    desk._ray = SimpleNamespace(
        remote=remote,
        wait=lambda answers, **_: (answers, []),
        get=lambda answer: answer[1],
        exceptions=SimpleNamespace(RayError=RayError),
    )
    return desk


@pytest.fixture
def clock_at(monkeypatch: pytest.MonkeyPatch):
    """Let a test say what time it is."""
    now = [time.monotonic()]
    monkeypatch.setattr("tokenmill.pipelines.execution_ray.time.monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_alarm_of_a_unit_is_no_fault_that_a_retry_of_the_store_may_mend():
    def stands_still(_: int) -> None:
        time.sleep(5)

    started = time.monotonic()
    with pytest.raises(UnitTimeoutError, match=r"not done within 0\.2 s"), raised_deadline(0.2):
        Patience(retries=5, total_s=60)("read", stands_still)
    assert time.monotonic() - started < 2


def test_sigterm_after_the_last_unit_of_a_stage_still_ends_the_run(tmp_path, monkeypatch):
    closes = metrics.StageMetrics.__exit__

    def asked_meanwhile(self, *error):
        os.kill(os.getpid(), signal.SIGTERM)
        return closes(self, *error)

    monkeypatch.setattr(metrics.StageMetrics, "__exit__", asked_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        run(folder_at(tmp_path), units_of(2))
    monkeypatch.undo()
    assert len(run(folder_at(tmp_path), units_of(2), allow_work=False).commits) == 2, "what was done is committed"


def test_pool_that_never_begins_ends_the_run_though_the_one_before_it_works(clock_at, monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    desk = StubDesk(DeskState(begun={0: HERE}, begun_roles=frozenset({"decode"})))
    clock = Clock(desk, POOLS, LIMITS, Drain(0))
    clock_at(100)
    clock.look(set())  # nothing was laid down for the models yet: they have nothing to begin with
    desk.now = replace(desk.now, offered=True)
    clock_at(3)
    clock.look(set())
    clock_at(6)
    with pytest.raises(RunError, match=r"no worker began within 5 s: each of 1 \(models\) wants"):
        clock.look(set())


def test_model_worker_that_waits_for_its_first_chunk_has_begun(clock_at, monkeypatch):
    monkeypatch.setattr("tokenmill.pipelines.execution_halves.this_place", lambda name: HERE)
    desk = _Desk()
    _Compute(b"", RemoteDesk(desk), 10.0)
    desk.take(0, HERE, "decode")
    desk.lay_down(HERE)  # decoded, and still in a block that is not full
    clock = Clock(StubDesk(desk.state()), POOLS, LIMITS, Drain(0))
    for _ in range(3):
        clock_at(100)
        clock.look(set())


def test_only_what_a_process_holds_at_the_moment_is_overdue(clock_at):
    waiting = DeskState(begun={0: HERE}, begun_roles=frozenset(POOLS), offered=True)
    desk = StubDesk(waiting)
    clock = Clock(desk, POOLS, LIMITS, Drain(0))
    clock_at(1000)
    clock.look(set())
    assert desk.ended == [], "whoever waits for the models holds nothing"
    desk.now = replace(waiting, hands=[Hand(place=HERE, index=0, held_s=13.0)])
    clock_at(3)
    clock.look({0})
    assert desk.ended == [], "the unit came back"
    clock_at(3)
    clock.look(set())
    assert desk.ended == [HERE]


def test_run_asked_to_end_is_settled_once_every_begun_unit_came_back(clock_at):
    drain = Drain(60)
    desk = StubDesk(DeskState(begun={0: HERE, 1: HERE}, begun_roles=frozenset(POOLS)))
    clock = Clock(desk, POOLS, LIMITS, drain)
    drain.ask()
    clock_at(3)
    clock.look({0})
    assert desk.closed and not clock.settled
    clock_at(3)
    clock.look({0, 1})
    assert clock.settled


def test_lost_unit_is_blamed_on_whoever_held_it_and_on_nobody_else():
    decoder, model = Place(node="node", pid=2, born=1, name="decoder"), Place(node="node", pid=3, born=1, name="model")
    state = DeskState(begun={0: model, 1: decoder, 2: decoder}, hands=[Hand(place=model, index=0, held_s=1.0)])
    poison, beside = lost_units(state, {2})
    assert (poison.index, poison.worker) == (0, "model") and "died or was stopped" in poison.error
    assert beside.index == 1 and "died" not in beside.error, "its decoder lives: a chunk went with the model worker"


def test_only_a_process_that_was_still_there_is_reported_as_killed(caplog):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        frozen = Place(node="ab" * 28, pid=process.pid, born=born_at(process.pid), name="frozen")
        dead = replace(frozen, born=0, name="dead")
        state = DeskState(hands=[Hand(place=place, index=0, held_s=20.0) for place in (frozen, dead)])
        desk = _desk_without_a_cluster()
        desk.kill_overdue(state, set(), 12.0)
        assert process.wait(timeout=10) == -signal.SIGKILL
        desk.kill_overdue(state, set(), 12.0)
    assert [record.args[0] for record in caplog.records] == ["frozen"]


def test_process_number_that_is_another_ones_by_now_is_not_killed():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        born = born_at(process.pid)
        assert born is not None
        assert not kill_process(Place(node="", pid=process.pid, born=born - 1, name=""))
        assert process.poll() is None
        assert kill_process(Place(node="", pid=process.pid, born=born, name=""))
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert not kill_process(Place(node="", pid=process.pid, born=born, name=""))


def test_workers_of_other_machines_get_no_credential(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "swordfish")
    monkeypatch.setenv("AWS_REGION", "here")
    assert "swordfish" not in _for_workers().values()
    assert _for_workers()["AWS_REGION"] == "here"


def _execution(**execution: object):
    return check_recipe(tiny.recipe(Path("data"), "root", {"execution": execution}), "tiny").execution


def test_cluster_started_here_holds_whole_workers_of_any_size():
    assert stage_pool(_execution(workers=1, cpus_per_worker=2.5), "score").cluster_cpus == 3
    halves = {"score": {"workers": 1, "cpus": 0.5, "decode": {"workers": 2}}}
    assert stage_pool(_execution(workers=1, pools=halves), "score").cluster_cpus == 3


@pytest.mark.parametrize(
    ("pools", "told"),
    [
        ({"tokenize": {"decode": {"workers": 1}}}, "tokenize.decode: only score runs as two pools"),
        ({"select": {"workers": 2}}, "execution.pools.select"),
    ],
)
def test_pool_of_a_stage_that_cannot_have_it_is_refused_by_name(pools, told):
    with pytest.raises(RecipeError, match=told):
        _execution(pools=pools)
