"""Killed twenty times, each time resumed on another number of ranks, the loader gives the samples of a quiet run."""

from __future__ import annotations

import operator
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.elastic_rank import Launch, Way, loader_of, run_rank, step_reached

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.rows import read_rows

KILLS = 20
LIMIT_S = 120
Table = dict[int, list[Any]]


@pytest.fixture(scope="module")
def processes(plan: Plan) -> Iterator[ForkServerContext]:
    """A server of processes of this test's own: one that runs already would not load what is asked for here."""
    loader_of(next(launches(plan, Path())), plan, 0).step(0)  # compiles what the server loads
    server = forkserver.ForkServer()
    server.set_forkserver_preload(["tests.warm_compiler", "tests.elastic_rank"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "connect_to_new_process", server.connect_to_new_process)
        yield get_context("forkserver")
    server._stop()  # returns when no process of it is left


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Pictures, texts that are cut and come twice, clips in several runs of frames; one sample cannot be read."""
    store = open_store(str(tmp_path_factory.mktemp("elastic")))
    vocabulary = byte_vocabulary(64)
    snapshots = [
        write_token_source(store, "pictures", vocabulary, Amounts(images=500, shards=5)),
        write_token_source(store, "clips", vocabulary, Amounts(clips=60, latent_frames=5)),
        write_token_source(store, "words", vocabulary, Amounts(texts=200, shards=3)),
    ]
    settings = PlanSettings(context=300, window_documents=150, mix={"words": 2.0}, split_long_clips=True)
    plan = write_plan(store, snapshots, settings)
    spoil(plan)
    return plan


def spoil(plan: Plan) -> None:
    """Break the text of one sample that is read in the middle of the epoch."""
    store = plan.folder.store
    place = plan.documents(plan.num_packs // 2)[0]
    index = pl.read_parquet(store.read_bytes(plan.index_of[place.shard]))
    data = bytearray(store.read_bytes(place.shard))
    offset = index["text_offset"][place.sample]
    data[offset : offset + 6] = b"broken"
    store.put(place.shard, bytes(data))


@dataclass(frozen=True)
class Running:
    """The processes of one launch, and what they wait for each other with."""

    launch: Launch
    ranks: list[BaseProcess]
    barrier: Barrier

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        """End what is left after a failure; ranks that wait for a dead one would wait for ever."""
        for rank in self.ranks:
            rank.kill()

    def wait_for(self, step: int) -> None:
        """Return once the run has published `step`."""
        loader = loader_of(self.launch, self.launch.open(), 0)
        deadline = time.monotonic() + LIMIT_S
        while step_reached(self.launch, loader) < step:
            assert all(rank.exitcode is None for rank in self.ranks), "a rank ended before it was killed"
            assert time.monotonic() < deadline, f"step {step} was not reached in {LIMIT_S} s"
            time.sleep(0.001)

    def kill(self) -> None:
        for rank in self.ranks:
            os.kill(rank.pid, signal.SIGKILL)
        self.end(-signal.SIGKILL)

    def end(self, exit_code: int = 0) -> None:
        for rank in self.ranks:
            rank.join(LIMIT_S)
        assert {rank.exitcode for rank in self.ranks} == {exit_code}


def start(launch: Launch, processes: ForkServerContext) -> Running:
    barrier = processes.Barrier(launch.world)
    ranks = [processes.Process(target=run_rank, args=(launch, rank, barrier)) for rank in range(launch.world)]
    for rank in ranks:
        rank.start()
    return Running(launch, ranks, barrier)


def read_launch(launch: Launch) -> Table:
    """Step → what all ranks of a launch read together, in the plan's order; a row that a kill cut off is none."""
    samples: Table = defaultdict(list)
    checksums: Table = defaultdict(list)
    for rank in range(launch.world):
        for row in read_rows(launch.rows(rank)):
            samples[row["step"]] += row["samples"]
            checksums[row["step"]] += row["checksums"]
    in_order = {step: sorted(found, key=lambda s: (s["pack"], s["slot"])) for step, found in samples.items()}
    return {step: [*found, *sorted(checksums[step])] for step, found in in_order.items()}


def launches(plan: Plan, run: Path) -> Iterator[Launch]:
    """Launches that all differ from the one before in ranks, threads and accumulation, and in how they read."""
    run.mkdir(exist_ok=True)
    global_packs = next(packs for packs in (5, 6, 7, 8) if plan.num_packs % packs)  # the last step has a remainder
    rng = random.Random(8)
    before = (0, 0, 0)
    ways: tuple[Way, ...] = ("loader", "stream", "loader", "stream")
    for number in range(KILLS + 1):
        way: Way = "workers" if number in (3, 14) else ways[number % len(ways)]
        most = 2 if way == "workers" else 4  # each rank with workers imports torch once more, for 4 s of CPU
        shape = before
        while any(map(operator.eq, shape, before)):
            shape = (min(most, rng.choice((1, 1, 2, 2, 3, 4))), rng.randint(1, most), rng.randint(1, 3))
        before = shape
        yield Launch(
            number=number, root=plan.folder.store.url, plan=plan.folder.path, run=run, global_packs=global_packs,
            world=shape[0], threads=shape[1], micro_packs=shape[2], read_ahead_steps=rng.randint(1, 6),
            way=way,
        )  # fmt: skip


def test_loader_killed_twenty_times_and_resumed_elastically_gives_the_samples_of_a_quiet_run(
    plan: Plan, processes: ForkServerContext, tmp_path: Path
) -> None:
    quiet, *_ = launches(plan, tmp_path / "quiet")
    with start(quiet, processes) as running:
        running.end()
    expected = read_launch(quiet)
    steps = loader_of(quiet, plan, 0).steps_per_epoch
    assert sorted(expected) == list(range(steps))
    rng = random.Random(20)
    moments = sorted(rng.sample(range(1, steps * 4 // 5), KILLS))

    table: Table = {}
    num_read_twice = 0
    for launch, moment in zip(launches(plan, tmp_path / "killed"), [*moments, None], strict=True):
        with start(launch, processes) as running:
            if moment is None:
                running.end()
            else:
                running.wait_for(moment)
                time.sleep(rng.uniform(0, 0.012))  # anywhere inside a step
                running.kill()
        published = step_reached(launch, loader_of(launch, plan, 0))
        read = read_launch(launch)
        assert not set(table) & set(read), "a step was taken again although its state was published"
        table |= {step: rows for step, rows in read.items() if step < published}
        for step in (step for step in read if step >= published):
            num_read_twice += 1
            assert is_part(read[step], expected[step])

    assert table == expected
    assert num_read_twice > 0, "no kill came between reading and publishing"
    check_every_planned_id_once(plan, table)


def is_part(some: list[Any], whole: list[Any]) -> bool:
    """What was read after the last state is read again: it must be of the same samples."""
    rest = list(whole)
    for one in some:
        if one not in rest:
            return False
        rest.remove(one)
    return True


def check_every_planned_id_once(plan: Plan, table: Table) -> None:
    """Compare what was read with the plan's rows, id range by id range; the broken sample is there, with its fault."""
    read = [sample for step in sorted(table) for sample in table[step] if isinstance(sample, dict)]
    names = ("shard", "sample", "start", "length", "template")
    planned = [
        (pack, slot, *(getattr(placed, name) for name in names))
        for pack in range(plan.num_packs)
        for slot, placed in enumerate(plan.documents(pack))
    ]
    assert [(s["pack"], s["slot"], *(s[name] for name in names)) for s in read] == planned
    assert plan_faults(plan) == []
    broken = {(s["shard"], s["sample"]) for s in read if s["fault"]}
    assert len(broken) == 1
    assert all(s["fault"] for s in read if (s["shard"], s["sample"]) in broken)
