"""The torch iterable: the plan's order with threads and workers, a state of what was consumed, errors by name."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError, RunError, StorageError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_loader import LoaderSettings
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.stream import MicroBatch, PlanStream
from tokenmill.train.stream_workers import WorkerStream

VOCABULARY = byte_vocabulary(64)
TENSORS = ("input_ids", "labels", "loss_weight", "position_ids", "cu_seqlens")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = open_store(str(tmp_path_factory.mktemp("stream") / "store"))
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=60, shards=3)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=60)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=300, window_documents=40))


def stream_of(plan: Plan, **arguments: Any) -> PlanStream:
    threads = arguments.pop("threads", 0)
    return PlanStream(plan, VOCABULARY, **{"global_packs": 6, "settings": LoaderSettings(threads=threads), **arguments})


@pytest.fixture(scope="module", autouse=True)
def quick_workers() -> None:
    """Workers forked from a server that has imported torch, not from this process: they start in milliseconds."""
    multiprocessing.set_forkserver_preload(["torch", "tokenmill.train.stream", "tests.warm_compiler"])


def in_server(num_workers: int) -> dict[str, Any]:
    return {"multiprocessing_context": "forkserver"} if num_workers else {}


def workers_of(stream: PlanStream, num_workers: int, **arguments: Any) -> DataLoader[MicroBatch]:
    """Torch's own DataLoader of a stream."""
    return DataLoader(stream, batch_size=None, num_workers=num_workers, **in_server(num_workers) | arguments)


def places(batches: Iterable[MicroBatch]) -> list[tuple[int, int]]:
    return [(batch["step"], batch["micro_step"]) for batch in batches]


def assert_same(found: Iterable[MicroBatch], expected: Iterable[MicroBatch]) -> None:
    found, expected = list(found), list(expected)
    assert places(found) == places(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in TENSORS)  # type: ignore[literal-required]
        assert {**one, **dict.fromkeys(TENSORS)} == {**other, **dict.fromkeys(TENSORS)}


def documents_by_step(streams: Iterable[Iterable[MicroBatch]]) -> dict[int, list[tuple[int, ...]]]:
    """Which documents, by their ids, all ranks together read in each step."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for stream in streams:
        for batch in stream:
            ends = batch["cu_seqlens"].tolist()
            ids = batch["input_ids"].tolist()
            found.setdefault(batch["step"], []).extend(
                tuple(ids[start:end])
                for start, end in itertools.pairwise(ends)
                if batch["loss_weight"][start:end].any()
            )
    return {step: sorted(documents) for step, documents in found.items()}


def test_stream_gives_the_micro_batches_of_the_loader_as_tensors(plan: Plan) -> None:
    loader = PlanLoader(plan, VOCABULARY, global_packs=6, micro_packs=2)

    batches = list(stream_of(plan, micro_packs=2))

    assert places(batches) == [(s, m) for s in range(loader.steps_per_epoch) for m in range(3)]
    for batch in batches:
        step = loader.step(batch["step"])
        arrays = step.micro_batches[batch["micro_step"]]
        for name in TENSORS:
            assert (batch[name].numpy() == getattr(arrays, name)).all()  # type: ignore[literal-required]
        assert batch["input_ids"].dtype == batch["position_ids"].dtype == torch.int64
        assert batch["loss_weight"].dtype == torch.float32 and batch["cu_seqlens"].dtype == torch.int32
        assert (batch["step_weight"], batch["step_tokens"]) == (step.weight, step.num_tokens)
        assert batch["micro_steps"] == 3


def test_stream_with_threads_and_with_workers_gives_the_same(plan: Plan) -> None:
    alone = list(stream_of(plan))

    assert_same(stream_of(plan, threads=3), alone)
    assert_same(workers_of(stream_of(plan), 2), alone)


def test_stream_in_a_spawned_worker_gives_the_same(plan: Plan) -> None:
    assert_same(workers_of(stream_of(plan, threads=2), 1, multiprocessing_context="spawn"), stream_of(plan))


def test_stream_any_ranks_and_accumulation_read_the_same_documents_in_each_step(plan: Plan) -> None:
    alone = documents_by_step([stream_of(plan)])

    assert len(alone) == -(-plan.num_packs // 6)
    for world, micro_packs in ((2, 1), (3, 2), (6, 1), (4, 3)):
        ranks = [stream_of(plan, rank=rank, world=world, micro_packs=micro_packs) for rank in range(world)]
        assert documents_by_step(ranks) == alone


def test_stream_state_counts_a_step_once_its_last_micro_batch_is_handed_out(plan: Plan) -> None:
    stream = stream_of(plan, threads=2, micro_packs=2)

    for batch in stream:
        state = stream.state_dict()
        done = batch["step"] + (batch["micro_step"] == 2)
        assert state == stream.state_after(done)
        assert state["epoch"] * stream.steps_per_epoch * 6 + state["next_pack"] == done * 6
        assert len(json.dumps(state)) <= 1024
    assert state["epoch"] == 1 and state["next_pack"] == 0


def test_stream_resumes_behind_any_step_on_other_ranks_and_threads(plan: Plan) -> None:
    whole = documents_by_step([stream_of(plan)])
    for done in range(1, len(whole)):
        stream = stream_of(plan, threads=2, micro_packs=2)
        for batch in stream:
            if (batch["step"], batch["micro_step"]) == (done - 1, 2):
                break
        state = json.loads(json.dumps(stream.state_dict()))
        ranks = [stream_of(plan, rank=rank, world=3) for rank in range(3)]
        for other in ranks:
            other.load_state_dict(state)
        assert documents_by_step(ranks) == {step: whole[step] for step in range(done, len(whole))}


def test_stream_left_early_is_taken_up_behind_the_last_whole_step(plan: Plan) -> None:
    stream = stream_of(plan, threads=2, micro_packs=2)
    for batch in stream:
        if (batch["step"], batch["micro_step"]) == (1, 1):
            break

    assert places(stream)[:2] == [(1, 0), (1, 1)]


def test_stream_goes_on_with_the_next_epoch(plan: Plan) -> None:
    stream = stream_of(plan)
    first, second = list(stream), list(stream)

    assert [batch["step"] for batch in second] == [batch["step"] + stream.steps_per_epoch for batch in first]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))


def test_stream_stops_before_its_stop_step_across_epochs(plan: Plan) -> None:
    stream = stream_of(plan, stop_step=stream_of(plan).steps_per_epoch + 2)
    stream.seek(1)

    assert sorted({batch["step"] for batch in stream}) == list(range(1, stream.steps_per_epoch + 2))
    assert list(stream) == []


def test_stream_with_persistent_workers_goes_through_epochs_and_refuses_to_skip(plan: Plan) -> None:
    stream = stream_of(plan, micro_packs=2)
    loader = workers_of(stream, 2, persistent_workers=True)

    assert_same([batch for _ in range(2) for batch in loader], [batch for _ in range(2) for batch in stream])
    next(iter(loader))
    with pytest.raises(RunError, match="persistent workers was left early"):
        list(loader)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_data_loader_resumes_with_as_many_workers(plan: Plan, num_workers: int) -> None:
    whole = list(stream_of(plan, micro_packs=2))
    arguments: dict[str, Any] = {"batch_size": None, "num_workers": num_workers}
    arguments |= in_server(num_workers)
    loader = StatefulDataLoader(stream_of(plan, micro_packs=2), **arguments)
    taken = iter(loader)
    done = 7 if num_workers else 6  # alone it is exact to the step
    for _ in range(done):
        next(taken)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    del taken

    resumed = StatefulDataLoader(stream_of(plan, micro_packs=2), **arguments)
    resumed.load_state_dict(state)

    assert_same(resumed, whole[done:])


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_stateful_data_loader_state_of_another_plan_is_refused(plan: Plan) -> None:
    loader = StatefulDataLoader(stream_of(plan), batch_size=None, num_workers=0)
    next(iter(loader))
    state = loader.state_dict()

    other = StatefulDataLoader(stream_of(plan, global_packs=4), batch_size=None, num_workers=0)
    other.load_state_dict(state)
    with pytest.raises(RecipeError, match="global_packs 6 ≠ 4"):
        iter(other)


def test_stream_state_of_another_plan_is_refused_naming_what_differs(plan: Plan) -> None:
    stream = stream_of(plan)

    with pytest.raises(RecipeError, match=r"plan_id '0+' ≠ .*global_packs 7 ≠ 6"):
        stream.load_state_dict(stream.state_dict() | {"plan_id": "0" * 64, "global_packs": 7})


def test_stream_takes_up_the_state_where_its_plan_continues_another(plan: Plan) -> None:
    before = stream_of(plan).state_after(2) | {"plan_id": "0" * 64}
    continues = {"plan": "0" * 64, "step": 2, "folder": "plans/pretrain/0", **before}
    stream = stream_of(replace(plan, description={**plan.description, "continues": continues}))
    stream.seek(3)

    stream.load_state_dict(before)

    assert next(iter(stream))["step"] == 0
    with pytest.raises(RecipeError, match=r"goes on from step 2 .* next_pack 18"):
        stream.load_state_dict(before | {"next_pack": 18})


@pytest.mark.parametrize("broken", [{"epoch": None}, {"next_pack": "many"}, {"next_pack": 5}, {"next_pack": -6}])
def test_stream_state_that_is_none_is_refused(plan: Plan, broken: dict[str, Any]) -> None:
    stream = stream_of(plan)

    with pytest.raises(RecipeError, match="no state of this loader"):
        stream.load_state_dict(stream.state_dict() | broken)
    assert stream.state_dict() == stream.state_after(0)


def test_stream_state_of_a_worker_is_refused_elsewhere(plan: Plan) -> None:
    stream = stream_of(plan)

    with pytest.raises(RecipeError, match=r"worker 1 of 2 in no worker: .*state_after"):
        stream.load_state_dict(stream.state_dict() | {"item": 3, "worker": 1, "workers": 2})


@pytest.mark.parametrize(
    ("rank", "world", "message"), [(2, 2, "rank 2 of 2"), (-1, 2, "rank -1"), (0, 0, "rank 0 of 0")]
)
def test_stream_of_a_rank_that_there_is_not_is_refused(plan: Plan, rank: int, world: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stream_of(plan, rank=rank, world=world)


def test_stream_of_more_ranks_than_packs_in_a_step_is_refused(plan: Plan) -> None:
    with pytest.raises(RecipeError, match="7 ranks cannot share 6 packs"):
        stream_of(plan, rank=6, world=7)


def test_stream_in_a_forked_worker_is_refused_instead_of_hanging(plan: Plan) -> None:
    with pytest.raises(RunError, match=r"was forked .* multiprocessing_context=\"spawn\""):
        list(workers_of(stream_of(plan), 1, multiprocessing_context="fork"))


def test_worker_stream_goes_on_from_what_was_handed_out_with_any_number_of_workers(plan: Plan) -> None:
    whole = list(stream_of(plan, micro_packs=2))
    stream = stream_of(plan, micro_packs=2)
    taken = []
    for batch in WorkerStream(stream, 2, **in_server(1)):
        taken.append(batch)
        if (batch["step"], batch["micro_step"]) == (1, 2):
            break
    state = stream.state_dict()
    again = WorkerStream(stream_of(plan, micro_packs=2), 0)
    again.load_state_dict(state)

    assert state == stream.state_after(2) == again.state_dict()
    assert_same([*taken, *again], whole)
    assert again.state_dict() == stream.state_after(stream.steps_per_epoch)
    assert next(iter(again))["step"] == stream.steps_per_epoch


@pytest.mark.parametrize("arguments", [{"persistent_workers": True}, {"in_order": False}])
def test_worker_stream_whose_workers_would_not_follow_it_is_refused(plan: Plan, arguments: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="takes no persistent_workers and no in_order=False"):
        WorkerStream(stream_of(plan), 2, **arguments)


def leftovers() -> Counter[str]:
    """Threads, worker processes and shared memory of this process."""
    processes = [process.name for process in multiprocessing.active_children()]
    memory = [path.name for path in Path("/dev/shm").glob("torch_*")]
    return Counter([thread.name for thread in threading.enumerate()] + processes + memory)


def assert_nothing_is_left(before: Counter[str]) -> None:
    """What ends, ends within moments: the last thread of a queue, a process that was told to."""
    deadline = time.monotonic() + 20
    while leftovers() - before and time.monotonic() < deadline:
        gc.collect()  # what a caught error's traceback holds
        time.sleep(0.01)
    assert not leftovers() - before


def test_stream_left_early_leaves_no_thread_process_or_shared_memory(plan: Plan) -> None:
    before = leftovers()

    taken = iter(stream_of(plan, threads=3))
    next(taken)
    assert sum(count for name, count in (leftovers() - before).items() if name.startswith("loader-")) == 3
    del taken
    assert not leftovers() - before

    in_workers = iter(workers_of(stream_of(plan), 2))
    batch = next(in_workers)
    assert len(multiprocessing.active_children()) >= 2
    del in_workers, batch
    assert_nothing_is_left(before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_while_reading_reaches_the_consumer_by_name(tmp_path: Path, num_workers: int) -> None:
    store = open_store(str(tmp_path / "store"))
    snapshot = write_token_source(store, "words", VOCABULARY, Amounts(texts=30))
    plan = write_plan(store, [snapshot], PlanSettings(context=300))
    window = plan.folder.at(plan.windows["documents"][0])
    stream = stream_of(plan, threads=2)
    store.delete(window)
    batches = workers_of(stream, num_workers)
    before = leftovers()

    with pytest.raises(StorageError, match=f"{window}: not there"):
        list(batches)
    assert_nothing_is_left(before)


@pytest.mark.parametrize("url", ["s3://bucket/root", "/data/plans/pretrain", "/data/plans/a/b/c"])
def test_stream_from_a_url_that_is_no_plans_is_refused(url: str) -> None:
    with pytest.raises(RecipeError, match=r"ends in /plans/<phase>/<plan>"):
        PlanStream.from_url(url, global_packs=4)
