"""Shards mapped into memory: the same arrays, and no file that was cut off is read in its map."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from tests.test_train_assembly import assert_same

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_loader import LoaderSettings
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.shard_bytes import StoreBytes
from tokenmill.train.steps import Step

VOCABULARY = byte_vocabulary(64)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    store = open_store(str(tmp_path / "store"))
    snapshot = write_token_source(store, "mixed", VOCABULARY, Amounts(images=40, clips=6, texts=60, shards=3))
    return write_plan(store, [snapshot], PlanSettings(context=256, window_documents=30))


def source_of(plan: Plan, memory_map: bool = True) -> StoreBytes:
    return StoreBytes(plan.folder.store, settings=LoaderSettings(memory_map=memory_map))


def whole(plan: Plan, source: StoreBytes) -> Step:
    return PlanLoader(plan, VOCABULARY, global_packs=plan.num_packs, threads=0, source=source).step(0)


def cut_off(plan: Plan) -> tuple[str, Path]:
    """Cut the last third off a shard in place, as a copy that runs out of disk does."""
    shard = plan.shards["shard"][0]
    path = plan.folder.store.local_path(shard)
    assert path is not None
    os.truncate(path, path.stat().st_size * 2 // 3)
    return shard, path


def test_mapped_shards_give_the_same_steps(plan: Plan) -> None:
    mapped, read = (
        PlanLoader(plan, VOCABULARY, global_packs=5, source=source_of(plan, on)).steps(0, 30) for on in (True, False)
    )

    for one, other in zip(mapped, read, strict=True):
        assert one.faults == []
        assert_same(one.micro_batches, other.micro_batches)


@pytest.mark.parametrize("when", ["before it is mapped", "while it is mapped"])
def test_mapped_shard_that_was_cut_off_is_read_as_far_as_it_goes_and_named(
    plan: Plan, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(plan)
    if when == "while it is mapped":
        assert whole(plan, source).faults == []
    shard, _ = cut_off(plan)

    step = whole(plan, source)

    assert {fault.shard for fault in step.faults} == {shard}
    assert len(step.faults) < sum(sample.shard == shard for sample in step.samples)
    assert all("truncated or replaced" in str(fault.fault) for fault in step.faults)
    assert f"{shard} has" in caplog.text
    assert_same(step.micro_batches, whole(plan, source_of(plan, memory_map=False)).micro_batches)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_mapped_shard_is_let_go_with_the_last_who_holds_it(plan: Plan) -> None:
    root = str(plan.folder.store.local_path(""))

    def mapped() -> int:
        told = Path("/proc/self/maps").read_text().splitlines()
        return len({line.split()[-1] for line in told if root in line and line.endswith(".tar")})

    source = source_of(plan)
    loader = PlanLoader(plan, VOCABULARY, global_packs=plan.num_packs, threads=0, source=source)
    arrays = loader.step(0).micro_batches[0]
    assert mapped() == len(plan.shards)

    del source, loader
    gc.collect()  # the loader and what it calls back hold each other
    assert mapped() == 0
    assert arrays.input_ids.any()
