"""The loader: the same samples on any number of ranks, from any step, whatever cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Assembled
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.dealing import deal
from tokenmill.train.loader import PlanLoader, ReadSample
from tokenmill.train.packs import build_pack, filler_pack, join_packs
from tokenmill.train.samples import SampleReader

VOCABULARY = byte_vocabulary(64)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    store = open_store(str(tmp_path / "store"))
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=40, shards=3)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=40)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=300, window_documents=30))


def read_by(plan: Plan, world: int, *, global_packs: int = 4, micro_packs: int = 1) -> list[list[ReadSample]]:
    """What all ranks together read, step by step, in the plan's order."""
    loaders = [
        PlanLoader(plan, VOCABULARY, global_packs=global_packs, rank=rank, world=world, micro_packs=micro_packs)
        for rank in range(world)
    ]
    steps = range(loaders[0].steps_per_epoch)
    return [
        sorted((s for loader in loaders for s in loader.step(step).samples), key=lambda s: (s.pack, s.slot))
        for step in steps
    ]


def test_loader_any_ranks_and_micro_packs_read_the_same_samples_in_each_step(plan: Plan) -> None:
    alone = read_by(plan, 1)

    assert sum(len(samples) for samples in alone) == sum(len(plan.documents(p)) for p in range(plan.num_packs))
    assert [samples[0].pack for samples in alone] == list(range(0, plan.num_packs, 4))
    assert read_by(plan, 2) == read_by(plan, 3) == read_by(plan, 4) == read_by(plan, 2, micro_packs=3) == alone


def test_loader_ranks_have_equally_many_micro_steps_even_in_the_last_step(plan: Plan) -> None:
    loaders = [PlanLoader(plan, VOCABULARY, global_packs=7, rank=rank, world=3, micro_packs=2) for rank in range(3)]

    for step in (0, loaders[0].steps_per_epoch - 1):
        assert {len(loader.step(step).micro_batches) for loader in loaders} == {loaders[0].micro_steps}


def test_loader_state_goes_back_to_the_step_it_came_from(plan: Plan) -> None:
    loader = PlanLoader(plan, VOCABULARY, global_packs=4)
    last = loader.steps_per_epoch

    for step in (0, 1, last - 1, last, last + 3):
        state = json.loads(json.dumps(loader.state(step).to_json()))
        assert loader.step_of(state) == step
        assert len(json.dumps(state)) < 1024


def test_loader_state_of_another_plan_is_refused_naming_the_fields(plan: Plan) -> None:
    loader = PlanLoader(plan, VOCABULARY, global_packs=4)
    state = loader.state(3).to_json() | {"plan_id": "0" * 64, "global_packs": 8}

    with pytest.raises(RecipeError, match=r"plan_id .* global_packs 8 ≠ 4"):
        loader.step_of(state)


def test_loader_more_ranks_than_packs_in_a_step_is_refused(plan: Plan) -> None:
    with pytest.raises(RecipeError, match="5 ranks cannot share 4 packs"):
        PlanLoader(plan, VOCABULARY, global_packs=4, rank=0, world=5)


def test_loader_of_another_vocabulary_is_refused(plan: Plan) -> None:
    with pytest.raises(RecipeError, match="another vocabulary"):
        PlanLoader(plan, byte_vocabulary(65), global_packs=4)


def test_loader_reading_ahead_gives_the_same_steps(plan: Plan) -> None:
    loader = PlanLoader(plan, VOCABULARY, global_packs=4, threads=3, read_ahead_steps=4)

    ahead = list(loader.steps(1, loader.steps_per_epoch))

    assert [step.number for step in ahead] == list(range(1, loader.steps_per_epoch))
    for step in ahead:
        assert step.samples == loader.step(step.number).samples


def test_loader_unreadable_sample_keeps_its_place_with_weight_0_and_is_reported(plan: Plan) -> None:
    store = plan.folder.store
    loader = PlanLoader(plan, VOCABULARY, global_packs=4)
    before = loader.step(0)
    victim = before.samples[0]
    name = victim.shard
    row = SampleReader(store, plan.index_of).row(name, victim.sample)
    data = bytearray(store.read_bytes(name))
    data[row["text_offset"] : row["text_offset"] + 6] = b"broken"
    store.put(name, bytes(data))

    after = PlanLoader(plan, VOCABULARY, global_packs=4).step(0)

    assert [(s.pack, s.slot, s.start, s.length) for s in after.samples] == [
        (s.pack, s.slot, s.start, s.length) for s in before.samples
    ]
    assert {(f.shard, f.sample) for f in after.faults} == {(victim.shard, victim.sample)}
    assert "unreadable" in str(after.faults[0].fault)
    lost = sum(float(m.loss_weight.sum()) for m in before.micro_batches) - sum(
        float(m.loss_weight.sum()) for m in after.micro_batches
    )
    assert lost > 0
    assert after.weight == before.weight


def test_loader_of_a_vanished_source_ends_the_run_instead_of_training_on_nothing(plan: Plan) -> None:
    store = plan.folder.store
    for shard in plan.index_of:
        store.delete(shard)
    loader = PlanLoader(plan, VOCABULARY, global_packs=4)

    with pytest.raises(RunError, match="in a row cannot be read"):
        for step in range(1000):
            loader.step(step % loader.steps_per_epoch)


def test_deal_puts_packs_of_similar_cost_side_by_side() -> None:
    costs = [float(cost) for cost in np.random.default_rng(0).lognormal(0, 1, 64)]

    dealt = deal(costs, 8, 1)

    assert sorted(pack for rank in dealt for hand in rank for pack in hand if pack is not None) == list(range(64))
    sides = [[costs[rank[m][0]] for rank in dealt] for m in range(8)]  # type: ignore[index]
    undealt = [costs[m * 8 : m * 8 + 8] for m in range(8)]
    assert np.mean([max(s) / np.mean(s) for s in sides]) < 1.25
    assert np.mean([max(s) / np.mean(s) for s in undealt]) > 2


def test_build_pack_labels_never_cross_documents() -> None:
    one = Assembled(np.array([1, 2, 3], np.int32), np.array([0, 1, 0.5], np.float32))
    two = Assembled(np.array([7, 8], np.int32), np.array([0, 1], np.float32))

    pack = build_pack([one, two], 8, pad=9)

    assert pack.input_ids.tolist() == [1, 2, 3, 7, 8, 9, 9, 9]
    assert pack.labels.tolist() == [2, 3, -100, 8, -100, -100, -100, -100]
    assert pack.loss_weight.tolist() == [1, 0.5, 0, 1, 0, 0, 0, 0]
    assert pack.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert pack.cu_seqlens.tolist() == [0, 3, 5, 8]
    joined = join_packs([pack, filler_pack(9)])
    assert joined.cu_seqlens.tolist() == [0, 3, 5, 8, 16]
    assert joined.num_tokens == 5


def test_loader_first_step_imports_neither_pandas_nor_torch(plan: Plan) -> None:
    """Each would cost a resume more than all else that its first batch needs."""
    program = f"""
import sys
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
plan = open_plan(open_store({plan.folder.store.url!r}), {plan.folder.path!r})
step = PlanLoader(plan, byte_vocabulary(64), global_packs=4).step(1)
print(step.num_tokens > 0, *sorted({{"pandas", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True"]
