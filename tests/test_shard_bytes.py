"""Shards read from object storage: by neighbouring ranges, from the cache, past faults, and never the wrong one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recording_proxy import RecordingProxy

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import OutageError, RecipeError, RunError, StorageError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_loader import LoaderSettings
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.shard_bytes import ShardFile, StoreBytes
from tokenmill.train.shard_ranges import RangeReader, coalesce
from tokenmill.train.stream import MicroBatch, PlanStream

VOCABULARY = byte_vocabulary(64)


def write(store: Store) -> Plan:
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=60, shards=3)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=60)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=300, window_documents=40))


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[MicroBatch]:
    """What every way of reading has to give."""
    plan = write(open_store(str(tmp_path_factory.mktemp("local") / "store")))
    return list(PlanStream(plan, VOCABULARY, global_packs=6))


@dataclass(frozen=True)
class Remote:
    """A plan in a bucket, behind a proxy."""

    plan: Plan
    proxy: RecordingProxy

    @property
    def store(self) -> Store:
        return self.plan.folder.store

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.plan.folder.path}"

    def stream(self, settings: dict[str, Any] | None = None, **arguments: Any) -> PlanStream:
        """Open the plan through the proxy, as a new process would."""
        options = {**self.store.options, "endpoint_url": self.proxy.endpoint, "timeout_s": 2, "retry_timeout_s": 20}
        loader = LoaderSettings.model_validate(settings or {})
        return PlanStream.from_url(self.url, storage=options, settings=loader, **{"global_packs": 6, **arguments})


@pytest.fixture(scope="module")
def planned(s3_server) -> Plan:
    return write(open_store(s3_server.new_root(), s3_server.options))


@pytest.fixture
def remote(s3_server, planned: Plan) -> Iterator[Remote]:
    with RecordingProxy(s3_server.endpoint) as proxy:
        yield Remote(planned, proxy)


@pytest.fixture
def spoiled(remote: Remote) -> Iterator[str]:
    """A shard of the plan that the test may spoil."""
    shard = remote.plan.shards["shard"][0]
    data = remote.store.read_bytes(shard)
    yield shard
    remote.store.put(shard, data)


def assert_same(found: list[MicroBatch], expected: list[MicroBatch]) -> None:
    assert [(b["step"], b["micro_step"]) for b in found] == [(b["step"], b["micro_step"]) for b in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["loss_weight"], other["loss_weight"])


def wait_until(cache: Path, shards: int) -> None:
    deadline = time.monotonic() + 20
    while len(list(cache.glob("*.shard"))) < shards and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(cache.glob("*.shard"))) >= shards


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 400)), max_size=30), st.integers(0, 200))
def test_coalesced_blocks_cover_every_range_once_and_leave_wide_gaps_out(
    ranges: list[tuple[int, int]], gap: int
) -> None:
    blocks = coalesce(ranges, gap, most=1000)

    assert sorted(number for block in blocks for number in block.members) == list(range(len(ranges)))
    for block in blocks:
        inside = sorted(ranges[number] for number in block.members)
        assert block.start == inside[0][0] and block.end == max(start + length for start, length in inside)
        assert block.end - block.start <= 1000
        reached = inside[0][0]
        for start, length in inside:
            assert start - reached <= gap
            reached = max(reached, start + length)


def test_ranges_of_a_truncated_shard_come_as_far_as_it_goes(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a.tar", bytes(range(100)))
    reader = RangeReader(store, 2)

    first, second = reader.fetch({"a.tar": [(90, 20), (0, 4)], "b.tar": [(0, 1)]}).values()
    reader.close()

    assert second == [second[0]] and "b.tar: not there" in str(second[0])
    assert first[1] == bytes(range(4))
    assert isinstance(first[0], StorageError)
    assert "a.tar: has 100 bytes, its index names bytes up to 110: it was truncated or replaced" in str(first[0])


def test_local_shard_of_another_digest_is_refused_by_name_when_asked(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    plan = write(store)
    shard = plan.shards["shard"][0]
    data = bytearray(store.read_bytes(shard))
    data[len(data) // 2] ^= 1
    store.put(shard, bytes(data))

    checked = LoaderSettings(check_digests=True)
    with pytest.raises(RunError, match=f"{shard}: its {len(data)} bytes do not have the sha256 .* replaced or damaged"):
        list(PlanStream(plan, VOCABULARY, global_packs=6, settings=checked))
    assert list(PlanStream(plan, VOCABULARY, global_packs=6))


def test_shard_without_a_digest_is_read_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path))
    store.put("foreign.tar", b"0123456789")
    source = StoreBytes(store, {}, LoaderSettings(check_digests=True))

    with caplog.at_level(logging.WARNING):
        assert source.ranges("foreign.tar", [(2, 3)]) == source.ranges("foreign.tar", [(2, 3)]) == [b"234"]
    assert caplog.text.count("foreign.tar: the plan names no sha256") == 1


@pytest.mark.s3
def test_stream_opens_a_url_reads_neighbours_together_and_never_lists(
    remote: Remote, batches: list[MicroBatch]
) -> None:
    stream = remote.stream()
    opened = len(remote.proxy.asked)

    assert_same(list(stream), batches)

    assert opened == 4
    assert remote.proxy.listings == []
    assert {method for method, _, _ in remote.proxy.asked} == {"GET"}
    documents = sum(len(remote.plan.documents(pack)) for pack in range(remote.plan.num_packs))
    assert 0 < len(remote.proxy.reads(".tar")) < documents / 2


@pytest.mark.s3
def test_stream_resumed_at_the_end_reads_no_more_than_at_the_beginning(remote: Remote) -> None:
    asked = []
    for step in (0, remote.stream().steps_per_epoch - 2):
        before = len(remote.proxy.asked)
        stream = remote.stream({"threads": 0})
        stream.seek(step)
        next(iter(stream))
        asked.append(len(remote.proxy.asked) - before)

    assert abs(asked[0] - asked[1]) <= 4


@pytest.mark.s3
def test_stream_survives_faults_of_network_and_store(remote: Remote, batches: list[MicroBatch]) -> None:
    remote.proxy.rate, remote.proxy.kinds = 0.3, ("503", "429", "reset", "truncate")

    assert_same(list(remote.stream()), batches)

    assert sum(remote.proxy.hits.values()) > 2


@pytest.mark.s3
def test_ranks_of_a_node_share_the_cache_and_then_ask_the_store_for_no_shard(
    remote: Remote, batches: list[MicroBatch], tmp_path: Path
) -> None:
    loader = {"cache": str(tmp_path / "cache")}
    digests = dict(zip(remote.plan.shards["shard"], remote.plan.shards["shard_sha256"], strict=True))
    source = StoreBytes(remote.store, digests, LoaderSettings.model_validate(loader))
    assert [source.file(shard) for shard in digests] == [None] * len(digests)  # nobody waits for them
    wait_until(tmp_path / "cache", len(digests))
    files = [source.file(shard) for shard in digests]
    source.close()

    ranks = [list(remote.stream(loader, rank=rank, world=2)) for rank in range(2)]

    assert [file.size for file in files if file] == [remote.store.size(shard) for shard in digests]
    assert remote.proxy.reads(".tar") == []
    assert sum(int(b["input_ids"].sum()) for rank in ranks for b in rank) == sum(
        int(b["input_ids"].sum()) for b in batches
    )


@pytest.mark.s3
def test_stream_fills_the_cache_behind_its_back_and_stops_when_it_is_left(
    remote: Remote, batches: list[MicroBatch], tmp_path: Path
) -> None:
    others = set(threading.enumerate())
    stream = remote.stream({"cache": str(tmp_path / "cache")})
    taken = iter(stream)
    first = next(taken)
    wait_until(tmp_path / "cache", 1)
    rest = list(taken)

    assert_same([first, *rest], batches)
    assert not [one for one in set(threading.enumerate()) - others if one.name.startswith("shard-")]
    assert not list((tmp_path / "cache").glob(".part-*"))


@pytest.mark.s3
def test_shard_that_went_out_of_the_cache_before_it_was_opened_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    digests = dict(zip(remote.plan.shards["shard"], remote.plan.shards["shard_sha256"], strict=True))
    source = StoreBytes(remote.store, digests, LoaderSettings(cache=str(tmp_path)))
    shard, digest = next(iter(digests.items()))
    assert source.file(shard) is None
    wait_until(tmp_path, 1)
    (tmp_path / f"{digest}.shard").unlink()

    deadline = time.monotonic() + 20
    while source.file(shard) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.file(shard) is not None
    source.close()


@pytest.mark.s3
def test_cached_shard_that_the_disk_does_not_give_is_read_by_ranges(
    remote: Remote, batches: list[MicroBatch], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digests = list(remote.plan.shards["shard_sha256"])
    for digest in digests:
        (tmp_path / f"{digest}.shard").symlink_to(f"{digest}.shard")  # which cannot be touched or opened: ELOOP

    with caplog.at_level(logging.WARNING):
        assert_same(list(remote.stream({"cache": str(tmp_path)})), batches)
    assert "is not kept (Too many levels of symbolic links)" in caplog.text


@pytest.mark.s3
def test_checked_shards_go_through_the_cache_once(remote: Remote, batches: list[MicroBatch], tmp_path: Path) -> None:
    loader = {"cache": str(tmp_path / "cache"), "check_digests": True}

    assert_same(list(remote.stream(loader)), batches)
    assert_same(list(remote.stream(loader)), batches)

    assert sorted(set(remote.proxy.reads(".tar"))) == sorted(remote.proxy.reads(".tar"))
    assert len(remote.proxy.reads(".tar")) == len(remote.plan.shards)


@pytest.mark.s3
@pytest.mark.parametrize("cached", [False, True])
def test_remote_shard_that_was_replaced_is_refused_by_name(
    remote: Remote, spoiled: str, tmp_path: Path, cached: bool
) -> None:
    data = bytearray(remote.store.read_bytes(spoiled))
    data[len(data) // 2] ^= 1
    remote.store.put(spoiled, bytes(data))
    loader = {"check_digests": True, "cache": str(tmp_path / "cache") if cached else None}

    with pytest.raises(RunError, match=f"{spoiled}: its {len(data)} bytes do not have the sha256"):
        list(remote.stream(loader))


@pytest.mark.s3
def test_remote_shard_that_was_cut_off_costs_its_last_samples_and_says_so(
    remote: Remote, spoiled: str, batches: list[MicroBatch], caplog: pytest.LogCaptureFixture
) -> None:
    data = remote.store.read_bytes(spoiled)
    remote.store.put(spoiled, data[: len(data) // 2])

    with caplog.at_level(logging.WARNING):
        found = list(remote.stream())

    assert f"{spoiled}: has {len(data) // 2} bytes, its index names bytes up to" in caplog.text
    assert [len(b["input_ids"]) for b in found] == [len(b["input_ids"]) for b in batches]
    assert [b["step_weight"] for b in found] == [b["step_weight"] for b in batches]
    weight, planned = (sum(float(b["loss_weight"].sum()) for b in those) for those in (found, batches))
    assert 0.5 * planned < weight < planned


@pytest.mark.s3
def test_remote_shard_that_vanished_keeps_its_places_and_says_so(
    remote: Remote, spoiled: str, batches: list[MicroBatch], caplog: pytest.LogCaptureFixture
) -> None:
    remote.store.delete(spoiled)

    with caplog.at_level(logging.WARNING):
        found = list(remote.stream())

    assert f"{spoiled}: not there (cannot read it); it keeps its place with weight 0" in caplog.text
    assert [len(b["input_ids"]) for b in found] == [len(b["input_ids"]) for b in batches]
    assert sum(float(b["loss_weight"].sum()) for b in found) < sum(float(b["loss_weight"].sum()) for b in batches)


@pytest.mark.s3
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("fault", ["gone", "stands still", "refuses the credentials"])
def test_store_that_is_gone_ends_the_run_by_name_and_gives_no_empty_step(
    remote: Remote, batches: list[MicroBatch], fault: str, threads: int
) -> None:
    options = {**remote.store.options, "endpoint_url": remote.proxy.endpoint, "timeout_s": 0.3, "retry_timeout_s": 0.2}
    loader = LoaderSettings(threads=threads, read_ahead_steps=2)
    others = set(threading.enumerate())
    stream = PlanStream.from_url(remote.url, storage=options, settings=loader, global_packs=6)
    found = []

    with pytest.raises(OutageError, match=r"s3://bucket-.*cannot read it: the (connection|store)"):
        for batch in stream:
            found.append(batch)
            break_down(remote.proxy, fault)

    assert_same(found, batches[: len(found)])
    assert stream.state_dict() == stream.state_after(len(found) // 6)
    assert not [one for one in set(threading.enumerate()) - others if one.name.startswith(("loader-", "shard-"))]


def break_down(proxy: RecordingProxy, fault: str) -> None:
    if fault == "gone":
        proxy.gone = True
    elif fault == "stands still":
        proxy.rate, proxy.kinds, proxy.stall_s = 1.0, ("stall",), 60
    else:
        proxy.answers["GET"] = (400, "ExpiredToken")


@pytest.mark.s3
def test_server_that_accepts_and_never_answers_ends_the_run_in_time_by_name(remote: Remote) -> None:
    taken = iter(remote.stream({"timeout_s": 0.5}))
    next(taken)
    break_down(remote.proxy, "stands still")
    started = time.monotonic()

    with pytest.raises(RunError, match=r"did not come within 0.5 s; waiting for tokenize/(pictures|words)/"):
        list(taken)
    assert time.monotonic() - started < 20


class DeadMount(StoreBytes):
    """A source of which one shard can be made to hang."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.dead, self.end = "", threading.Event()

    def file(self, shard: str) -> ShardFile | None:
        if shard == self.dead:
            self.end.wait(60)
        return super().file(shard)


def test_loader_that_waits_for_a_shard_names_no_other(tmp_path: Path) -> None:
    plan = write(open_store(str(tmp_path / "store")))
    source = DeadMount(plan.folder.store)
    loader = PlanLoader(plan, VOCABULARY, global_packs=1, threads=2, read_ahead_steps=1, source=source,
                        step_timeout_s=0.3)  # fmt: skip
    first_use: dict[str, int] = {}
    for pack in range(plan.num_packs):
        for row in plan.documents(pack):
            first_use.setdefault(row.shard, pack)
    source.dead, last = max(first_use.items(), key=lambda use: use[1])
    assert last > 3  # threads have waited for other shards before
    steps = loader.steps(0, plan.num_packs)

    try:
        with pytest.raises(RunError, match=f"step [0-9]+ did not come within 0.3 s; waiting for {source.dead}$"):
            list(steps)
        with pytest.raises(RunError, match=f"step {last} did not come within 0.3 s; waiting for {source.dead}$"):
            list(loader.micro_batches([(last, 0)]))  # as in a worker
    finally:
        source.end.set()


@pytest.mark.s3
def test_cache_folder_that_cannot_be_made_is_refused_when_the_stream_is_opened(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RecipeError, match=r"train\.loader\.cache: .*file/cache: cannot write there"):
        remote.stream({"cache": str(tmp_path / "file" / "cache")})
