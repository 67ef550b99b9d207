"""Windows of a plan: every pass once, near the plan's mix all along, repetitions far apart, large enough for packs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.plan_figures import cost_spread, mix_spread
from tokenmill.pipelines.plan_windows import Window, windows_of
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary


def source(name: str, shards: int, samples: int = 100, ids: int | None = None) -> Snapshot:
    """A tokenized source as its records tell it, without the archives."""
    config = StageConfig(stage="tokenize", version=1, schema=1, settings={}, fingerprints={})
    folder = StageDir(store=open_store("memory://windows"), source=name, config=config)
    return Snapshot(folder=folder, commits=tuple(_commit(folder, n, samples, ids) for n in range(shards)))


def _commit(folder: StageDir, number: int, samples: int, ids: int | None) -> Commit:
    unit, digest = f"{folder.source}-{number:06d}", f"{number:064d}"
    files = tuple(
        FileEntry(name=f"{unit}.{ending}", role=role, bytes=1, sha256=digest)
        for ending, role in (("tar", "data"), ("parquet", "rows"))
    )
    return Commit(stage="tokenize", source=folder.source, config=folder.config.digest, unit=unit,
                  inputs=(InputRef(name=unit, digest=digest),), files=files,
                  counts=Counts(rows_in=samples, kept=samples, out=samples),
                  totals={} if ids is None else {"codes": ids, "text_ids": 0})  # fmt: skip


def planned(snapshots: list[Snapshot], **changes) -> list[Window]:
    settings = PlanSettings(**{"context": 1024, "window_documents": 1000, **changes})
    return windows_of("an id", snapshots, settings)


def documents(window: Window, name: str | None = None) -> float:
    return sum(one.num_samples * one.share for one in window.shards if name in (None, one.source))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 3.0)), min_size=1, max_size=4),
    st.integers(1, 900),
    st.integers(1, 50),
)
def test_windows_hold_every_pass_once_and_are_large_enough(shards, window_documents, window_packs):
    snapshots = [source(f"s{n}", count, ids=100_000) for n, (count, _) in enumerate(shards)]
    mix = {f"s{n}": epochs for n, (_, epochs) in enumerate(shards)}
    windows = planned(snapshots, mix=mix, window_documents=window_documents, window_packs=window_packs)
    passes = [(one.archive, one.repetition) for window in windows for one in window.shards]
    wanted = [
        (snapshot.folder.at(commit.data.name), repetition)
        for snapshot in snapshots
        for commit in snapshot.commits
        for repetition in range(int(np.ceil(mix[snapshot.folder.source])))
    ]
    assert sorted(passes) == sorted(wanted)
    assert [window.number for window in windows] == list(range(len(windows)))
    packs = [sum((one.num_ids or 0) * one.share for one in window.shards) / 1024 for window in windows]
    for window, held in list(zip(windows, packs, strict=True))[:-1]:
        assert documents(window) >= window_documents and held >= window_packs
    if len(windows) > 1:
        assert documents(windows[-1]) >= window_documents / 2 and packs[-1] >= window_packs / 2


def test_windows_count_documents_alone_where_records_tell_no_ids():
    told = planned([source("a", 40, ids=100_000), source("b", 40)], window_documents=200)
    assert len(told) == 40
    assert len(planned([source("a", 40, ids=100_000), source("b", 40, ids=100_000)], window_documents=200)) == 7


def test_windows_hold_their_share_of_every_source_as_far_as_whole_shards_allow():
    snapshots = [source("big", 400), source("small", 40), source("often", 2), source("single", 1)]
    windows = planned(snapshots, mix={"often": 20.0})
    assert len(windows) == 48
    for name, whole in (("big", 40_000), ("small", 4_000), ("often", 4_000)):
        found = [documents(window, name) for window in windows]
        assert max(found) - min(found) <= 200, name
        assert abs(found[0] - whole / len(windows)) <= 100
        halves = [sum(found[:24]), sum(found[24:])]
        assert abs(halves[0] - halves[1]) <= 200


def test_windows_take_a_source_whole_before_they_take_it_again():
    windows = planned([source("a", 30), source("b", 7)], mix={"a": 2.5, "b": 3}, window_documents=300)
    for name in ("a", "b"):
        order = [(w.number, one.repetition) for w in windows for one in w.shards if one.source == name]
        assert [repetition for _, repetition in order] == sorted(repetition for _, repetition in order)
    assert windows == planned([source("a", 30), source("b", 7)], mix={"a": 2.5, "b": 3}, window_documents=300)


def test_windows_spread_sources_of_one_shard_over_the_plan():
    windows = planned([source("big", 100), *(source(f"s{n}", 1) for n in range(20))], window_documents=500)
    found = [w.number for w in windows for one in w.shards if one.source != "big"]
    assert len(set(found)) > 8
    assert min(found) < len(windows) / 4 < 3 * len(windows) / 4 < max(found)


def test_windows_of_ten_thousand_shards_take_a_second():
    snapshots = [source("a", 8_000, ids=10**7), source("b", 2_000, ids=10**7)]
    started = time.process_time()
    windows = planned(snapshots, mix={"b": 2.0})
    assert sum(len(window.shards) for window in windows) == 12_000
    assert time.process_time() - started < 3  # 0.4 s on a quiet machine


def test_spread_of_windows_tells_how_far_they_are_off():
    (commit,) = source("a", 1).commits
    commits = [replace(commit, totals={"source.a.tokens": a, "source.b.tokens": b}) for a, b in ((3, 1), (1, 3))]
    assert mix_spread(commits) == {"mean": 0.25, "worst": 0.25}
    assert mix_spread(commits[:1]) == {"mean": 0.0, "worst": 0.0}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory):
    store, vocabulary = open_store(str(tmp_path_factory.mktemp("store"))), byte_vocabulary(64)
    sources = [
        write_token_source(store, "pictures", vocabulary, Amounts(images=600, clips=200, shards=8)),
        write_token_source(store, "words", vocabulary, Amounts(texts=600, text_words=60, shards=8)),
    ]
    return write_plan(store, sources, PlanSettings(context=512, window_documents=300))


def test_plan_tells_fill_and_bound_longest_modalities_and_spreads(plan):
    about = plan.description
    placed = [document for pack in range(plan.num_packs) for document in plan.documents(pack)]
    whole: dict[tuple, int] = {}
    for one in placed:
        key = (one.shard, one.sample, one.repetition)
        whole[key] = whole.get(key, 0) + one.length
    assert about["longest"] == max(whole.values())
    assert about["fill"] <= about["supply_bound"] <= 1
    assert about["num_windows"] > 2
    assert 0 < about["window_mix"]["mean"] <= about["window_mix"]["worst"] < 0.5
    assert sum(one["tokens"] for one in about["modalities"].values()) == about["totals"]["tokens"]
    assert {name: one["documents"] for name, one in about["modalities"].items()} == {
        "image": 600, "video": 200, "text": 600}  # fmt: skip
    pieces = [one for one in placed if one.length < whole[(one.shard, one.sample, one.repetition)] and one.start == 0]
    assert about["totals"]["cut_documents"] == len(pieces) > 0
    assert not {"longest", "packs_bound"} & set(about["totals"])


def test_cost_spread_is_less_for_dealt_packs(plan):
    spread = plan.description["cost_spread"]["16"]
    assert 1 <= spread["dealt"] < spread["undealt"]


def test_cost_spread_of_less_packs_than_a_step_is_not_told(tmp_path: Path):
    store = open_store(str(tmp_path))
    small = write_plan(store, [write_token_source(store, "w", byte_vocabulary(64), Amounts(texts=9))], PlanSettings())
    assert small.description["cost_spread"] == {}
    assert cost_spread(Snapshot(folder=small.folder, commits=())) == {}
