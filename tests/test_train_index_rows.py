"""Rows of a shard's index that are not what a plan took them for: their samples get weight 0, the others are read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.hand_made_plans import write_plan_of

from tokenmill.demo.tokens import TokenSample, write_shards
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.stagedir import parse_table, table_bytes
from tokenmill.manifests.storage import Store, open_store
from tokenmill.settings_loader import LoaderSettings
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader, Step
from tokenmill.train.shard_bytes import StoreBytes

VOCABULARY = byte_vocabulary(64)
SAMPLES, LENGTH = 5, 12
NUMBERS = ("num_text", "num_codes", "codes_offset", "codes_length", "text_offset", "text_length")


def sample(number: int) -> TokenSample:
    segments: list[Segment] = [TextSegment(0, 9, "caption"), VisionSegment(1, 4, 5, 0)]
    ids, codes = np.full(9, 40 + number, np.uint16), np.full(20, 3 + number, np.uint32)
    return f"sample-{number}", "image", segments, ids, codes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def plan(store: Store) -> Plan:
    """Two pieces of each sample, a pack each."""
    snapshot = write_shards(store, "hand", VOCABULARY, [[sample(number) for number in range(SAMPLES)]])
    (commit,) = snapshot.commits
    row = {"shard": snapshot.folder.at(commit.data.name), "template": "generation", "length": LENGTH}
    packs = [[row | {"sample": n, "start": 0}, row | {"sample": n, "start": LENGTH}] for n in range(SAMPLES)]
    return write_plan_of(store, [snapshot], packs, VOCABULARY, 2 * LENGTH + 1)


def with_index(plan: Plan, changed: pl.DataFrame) -> Plan:
    """Give a plan whose shard has another index, written as ours are."""
    (name,) = plan.index_of.values()
    data = table_bytes(changed, 1)
    other = f"{name.rsplit('-', 1)[0]}-{sha256_hex(data)[:8]}.parquet"
    plan.folder.store.put(other, data)
    return replace(plan, shards=plan.shards.with_columns(index=pl.lit(other)))


def index_of(plan: Plan) -> pl.DataFrame:
    (name,) = plan.index_of.values()
    return parse_table(plan.folder.store.read_bytes(name))


def step_of(plan: Plan, memory_map: bool) -> Step:
    source = StoreBytes(plan.folder.store, settings=LoaderSettings(memory_map=memory_map))
    return PlanLoader(plan, VOCABULARY, global_packs=SAMPLES, source=source).step(0)


def assert_only_lost(plan: Plan, step: Step, victim: int) -> None:
    """Documents of a step are as with the plan's own index, but for those of one sample that are told as lost."""
    good = PlanLoader(plan, VOCABULARY, global_packs=SAMPLES).step(0)
    lost = {(fault.pack, fault.slot) for fault in step.faults}
    assert lost and lost <= {(victim, 0), (victim, 1)}
    packs = list(dict.fromkeys(read.pack for read in step.samples))
    assert sorted(packs) == list(range(SAMPLES))
    for pack, found, expected in zip(packs, step.micro_batches, good.micro_batches, strict=True):
        np.testing.assert_array_equal(found.cu_seqlens, expected.cu_seqlens)
        for slot in range(2):
            here = slice(slot * LENGTH, (slot + 1) * LENGTH)
            if (pack, slot) in lost:
                assert not found.loss_weight[here].any() and (found.input_ids[here] == VOCABULARY.pad).all()
                continue
            assert found.loss_weight[here].any()
            np.testing.assert_array_equal(found.input_ids[here], expected.input_ids[here])
            np.testing.assert_array_equal(found.labels[here], expected.labels[here])


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segments": None}, "not_tokenized"),
        ({"segments": None} | dict.fromkeys(NUMBERS), "not_tokenized"),
        (dict.fromkeys(NUMBERS, 0), "a segment needs"),
        ({"codes_length": 0, "num_codes": 0}, r"needs codes \[0, 20\) of 0"),
        ({"num_codes": 19}, None),
        ({"segments": "[1]"}, "not a segment: 1"),
        ({"segments": "3"}, "not a list of segments: 3"),
        ({"segments": "{]"}, "line 1 column 2"),
        ({"segments": "[]"}, "no_"),
        ({"codes_offset": -512}, "cannot read it"),
    ],
)
def test_loader_row_that_is_not_as_planned_loses_its_sample_alone(
    plan: Plan, changes: dict[str, object], reason: str | None, memory_map: bool
) -> None:
    index = index_of(plan)
    is_victim = pl.int_range(pl.len()) == 2
    columns = {
        name: pl.when(is_victim).then(pl.lit(value, index[name].dtype)).otherwise(pl.col(name))
        for name, value in changes.items()
    }

    step = step_of(with_index(plan, index.with_columns(**columns)), memory_map)

    if reason is None:  # the archive has all that is needed: the reference reads it
        assert step.faults == []
        return
    assert all(re.search(reason, str(fault.fault)) for fault in step.faults), step.faults
    assert_only_lost(plan, step, 2)


def test_loader_index_with_fewer_rows_than_planned_loses_those_samples_alone(plan: Plan) -> None:
    step = PlanLoader(with_index(plan, index_of(plan).head(SAMPLES - 1)), VOCABULARY, global_packs=SAMPLES).step(0)

    assert {fault.fault for fault in step.faults} == {"not_in_index: row 4 of an index of 4"}
    assert_only_lost(plan, step, 4)


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("missing", [1, 10**9])
def test_loader_shard_short_by_a_byte_or_by_all_loses_what_is_missing_alone(
    plan: Plan, missing: int, memory_map: bool
) -> None:
    (shard,) = plan.index_of
    index, store = index_of(plan), plan.folder.store
    ends = (index["codes_offset"] + index["codes_length"]).max(), (index["text_offset"] + index["text_length"]).max()
    store.put(shard, store.read_bytes(shard)[: max(0, max(map(int, ends)) - missing)])  # type: ignore[arg-type]

    step = step_of(plan, memory_map)

    assert {fault.sample for fault in step.faults} == ({SAMPLES - 1} if missing == 1 else set(range(SAMPLES)))
    assert all("truncated or replaced" in str(fault.fault) for fault in step.faults)
