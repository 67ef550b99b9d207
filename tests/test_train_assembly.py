"""The compiled assembly: what the reference makes of a plan, id for id, and why something could not be read."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.hand_made_plans import Row, made_samples, write_plan_of

from tokenmill.demo.tokens import Amounts, TokenSample, write_shards, write_token_source
from tokenmill.errors import ManifestError, RunError, SampleError
from tokenmill.manifests.archive import npy_bytes
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_loader import LoaderSettings
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Assembled, assemble, assembled_length
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.templates import TEMPLATES
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.assembly_reading import header_fits
from tokenmill.train.assembly_tables import HEADER_BYTES
from tokenmill.train.dealing import deal
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import PackArrays, build_pack, filler_pack, join_packs
from tokenmill.train.samples import SampleReader
from tokenmill.train.shard_bytes import StoreBytes

VOCABULARY = byte_vocabulary(64)
CONTEXT = 256
FIELDS = ("input_ids", "labels", "loss_weight", "position_ids", "cu_seqlens")


def reference_document(plan: Plan, placed: Any) -> Assembled:
    sample = SampleReader(plan.folder.store, plan.index_of).read(placed.shard, placed.sample)
    segments = take_frames(sample.segments, placed.frame, placed.frames) if placed.frames else sample.segments
    weights = (plan.description["vision_weight"], plan.description["text_weight"])
    whole = assemble(segments, sample.text_ids, sample.codes, placed.template, VOCABULARY, placed.variant, *weights)
    return whole.piece(placed.start, placed.length)


def reference_micro_batches(plan: Plan, loader: PlanLoader, number: int) -> list[PackArrays]:
    """What the step must be, by the plain functions that work on one document."""
    packs = loader.packs_of(number)
    hands = deal([float(plan.cost(pack).tokens) for pack in packs], loader.world, loader.micro_packs)[loader.rank]
    hands += [[None] * loader.micro_packs] * (loader.micro_steps - len(hands))
    return [join_packs([_reference_pack(plan, packs, dealt) for dealt in hand]) for hand in hands]


def _reference_pack(plan: Plan, packs: Sequence[int], dealt: int | None) -> PackArrays:
    if dealt is None:
        return filler_pack(VOCABULARY.pad)
    documents = [reference_document(plan, placed) for placed in plan.documents(packs[dealt])]
    return build_pack(documents, plan.context, VOCABULARY.pad)


def assert_same(found: Sequence[PackArrays], expected: Sequence[PackArrays]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in FIELDS:
            assert getattr(one, field).dtype == getattr(other, field).dtype
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
        assert (one.num_tokens, one.squares) == (other.num_tokens, other.squares)


def pieces_of(rng: np.random.Generator, snapshot: Snapshot, groups: Sequence[Sequence[TokenSample]]) -> list[Row]:
    """Draw a piece, cut anywhere, of every sample under every template that fits it; of clips also runs of frames."""
    rows: list[Row] = []
    for commit, group in zip(snapshot.commits, groups, strict=True):
        for number, (_, modality, segments, *_) in enumerate(group):
            for template, variant, run in itertools.product(TEMPLATES, (0, 1), (False, True)):
                frames = {"frame": 1, "frames": 1} if run and modality == "video" else {"frame": 0, "frames": 0}
                try:
                    shown = take_frames(segments, 1, 1) if frames["frames"] else segments
                    length = assembled_length(shown, template, VOCABULARY, variant)
                except SampleError:
                    continue
                start = int(rng.integers(0, length)) if rng.random() < 0.5 else 0
                most = min(length - start, CONTEXT)
                taken = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
                rows.append({"shard": snapshot.folder.at(commit.data.name), "sample": number, "template": template,
                             "variant": variant, "start": start, "length": taken, **frames})  # fmt: skip
    return [rows[place] for place in rng.permutation(len(rows))]


def packed(rows: Sequence[Row]) -> list[list[Row]]:
    packs: list[list[Row]] = [[]]
    for row in rows:
        if sum(one["length"] for one in packs[-1]) + row["length"] > CONTEXT:
            packs.append([])
        packs[-1].append(row)
    return packs


@given(
    seed=st.integers(0, 2**32),
    weights=st.sampled_from([(1.0, 0.5), (0.0, 1.0), (1.0, 0.0), (0.3, 0.7)]),
    micro_packs=st.integers(1, 3),
    memory_map=st.booleans(),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_assembly_of_any_pieces_is_that_of_the_reference(
    seed: int,
    weights: tuple[float, float],
    micro_packs: int,
    memory_map: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rng = np.random.default_rng(seed)
    store = open_store(str(tmp_path_factory.mktemp("store")))
    groups = [made_samples(rng, 10, VOCABULARY) for _ in range(2)]
    snapshot = write_shards(store, "hand", VOCABULARY, groups)
    plan = write_plan_of(store, [snapshot], packed(pieces_of(rng, snapshot, groups)), VOCABULARY, CONTEXT,
                         weights=weights)  # fmt: skip
    source = StoreBytes(store, settings=LoaderSettings(memory_map=memory_map))
    loader = PlanLoader(plan, VOCABULARY, global_packs=5, micro_packs=micro_packs, world=2, rank=1, threads=0,
                        source=source)  # fmt: skip

    for number in range(loader.steps_per_epoch):
        step = loader.step(number)
        assert step.faults == []
        assert_same(step.micro_batches, reference_micro_batches(plan, loader, number))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    store = open_store(str(tmp_path / "store"))
    snapshot = write_token_source(store, "mixed", VOCABULARY, Amounts(images=20, clips=6, texts=30, shards=2))
    return write_plan(store, [snapshot], PlanSettings(context=CONTEXT, window_documents=30))


def test_assembly_of_steps_over_windows_and_epochs_is_that_of_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = open_store(str(tmp_path))
    groups = [made_samples(rng, 20, VOCABULARY)]
    snapshot = write_shards(store, "hand", VOCABULARY, groups)
    packs = packed(pieces_of(rng, snapshot, groups))
    plan = write_plan_of(store, [snapshot], packs, VOCABULARY, CONTEXT, window_packs=7)
    loader = PlanLoader(plan, VOCABULARY, global_packs=5, micro_packs=2)

    steps = loader.steps(0, loader.steps_per_epoch + 2)

    for step in steps:
        assert_same(step.micro_batches, reference_micro_batches(plan, loader, step.number))


def test_assembly_of_ranges_fetched_from_a_remote_store_is_the_same(plan: Plan) -> None:
    local = PlanLoader(plan, VOCABULARY, global_packs=4)
    remote = open_store("memory://assembly-of-ranges")
    for file in plan.folder.store.files():
        remote.put(file.path, plan.folder.store.read_bytes(file.path))
    moved = replace(plan, folder=replace(plan.folder, store=remote))

    for number in range(local.steps_per_epoch):
        found = PlanLoader(moved, VOCABULARY, global_packs=4).step(number)
        assert found.faults == []
        assert_same(found.micro_batches, local.step(number).micro_batches)


def victim_of(plan: Plan) -> tuple[Any, dict[str, Any]]:
    """Take a document that has text ids and codes, and its index row."""
    reader = SampleReader(plan.folder.store, plan.index_of)
    for pack in range(plan.num_packs):
        for placed in plan.documents(pack):
            row = reader.row(placed.shard, placed.sample)
            if row["codes_length"] > 128 and row["text_length"] > 128:
                return placed, row
    raise AssertionError("no such document")


def change(store: Store, name: str, place: int, data: bytes) -> None:
    whole = bytearray(store.read_bytes(name))
    whole[place : place + len(data)] = data
    store.put(name, bytes(whole))


@pytest.mark.parametrize(
    ("place", "data", "reason"),
    [
        (0, b"broken", "unreadable"),
        (6, b"\x09\x00", "npy version"),
        (10, b"{'descr': '<f2'", "of float16"),
        (10, b"{'descr': '<u2', 'fortran_order': False, 'shape': (3, 3), }".ljust(117), "needs codes"),
        (10, b"{'descr': '<u2', 'fortran_order': False, 'shape': (11,), }".ljust(117), "needs codes"),
        (128, b"\xff\xff", "codes reach 65535"),
    ],
)
def test_assembly_of_a_broken_sample_has_weight_0_and_tells_why(
    plan: Plan, place: int, data: bytes, reason: str
) -> None:
    placed, row = victim_of(plan)
    change(plan.folder.store, placed.shard, row["codes_offset"] + place, data)
    loader = PlanLoader(plan, VOCABULARY, global_packs=plan.num_packs)

    step = loader.step(0)

    assert step.faults
    assert {(fault.shard, fault.sample) for fault in step.faults} == {(placed.shard, placed.sample)}
    assert all(reason in str(fault.fault) for fault in step.faults)
    assert [sample for sample in step.samples if sample.fault] == step.faults
    for arrays, dealt in zip(step.micro_batches, deal_of(plan, loader), strict=True):
        borders = arrays.cu_seqlens.tolist()
        for slot, document in enumerate(plan.documents(dealt)):
            here = slice(borders[slot], borders[slot + 1])
            is_lost = (document.shard, document.sample) == (placed.shard, placed.sample)
            if is_lost:
                assert not arrays.loss_weight[here].any()
                assert (arrays.labels[here] == -100).all()
                assert (arrays.input_ids[here] == VOCABULARY.pad).all()
            else:
                expected = build_pack([reference_document(plan, document)], document.length, VOCABULARY.pad)
                np.testing.assert_array_equal(arrays.input_ids[here], expected.input_ids)
                np.testing.assert_array_equal(arrays.labels[here], expected.labels)


def deal_of(plan: Plan, loader: PlanLoader) -> list[int]:
    dealt = deal([float(plan.cost(pack).tokens) for pack in range(plan.num_packs)], 1, 1)[0]
    return [pack for hand in dealt for pack in hand if pack is not None]


@pytest.mark.parametrize("shape", [(1,), (10,), (4096,), (1, 1), (64, 64), (2, 4, 5), (100, 1, 1)])
@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_assembly_takes_headers_of_rows_and_grids_of_just_the_planned_count(shape: tuple[int, ...], kind: Any) -> None:
    width, count = np.dtype(kind).itemsize, int(np.prod(shape))
    assert fits(np.zeros(shape, kind), width, count)
    for other in ((6 - width, count), (width, count + 1), (width, count - 1), (width, 10 * count)):
        assert not fits(np.zeros(shape, kind), *other)
    assert not fits(np.zeros(shape, np.int64), width, count)
    if min(shape) > 1 < len(shape):
        assert not fits(np.asfortranarray(np.zeros(shape, kind)), width, count)


def fits(array: NDArray[Any], width: int, count: int) -> bool:
    return bool(header_fits(np.frombuffer(npy_bytes(array)[:HEADER_BYTES], np.uint8), width, count))


def test_assembly_reads_a_header_that_numpy_would_write_otherwise(plan: Plan) -> None:
    """The kernel knows one form of header; what else numpy can read goes through the reference."""
    placed, row = victim_of(plan)
    number = (row["codes_length"] - 128) // 2
    header = f"{{'shape': ({number},), 'descr': '<u2', 'fortran_order': False}}".ljust(117) + "\n"
    change(plan.folder.store, placed.shard, row["codes_offset"] + 10, header.encode())
    loader = PlanLoader(plan, VOCABULARY, global_packs=plan.num_packs)

    step = loader.step(0)

    assert step.faults == []
    assert_same(step.micro_batches, reference_micro_batches(plan, loader, 0))


def test_assembly_of_a_truncated_shard_reads_what_is_there_and_names_it(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    placed, _ = victim_of(plan)
    store = plan.folder.store
    store.put(placed.shard, store.read_bytes(placed.shard)[: store.size(placed.shard) // 2])

    step = PlanLoader(plan, VOCABULARY, global_packs=plan.num_packs).step(0)

    lost = {fault.sample for fault in step.faults}
    assert all("truncated or replaced" in str(fault.fault) for fault in step.faults)
    assert {fault.shard for fault in step.faults} == {placed.shard}
    assert 0 < len(lost) < len({s.sample for s in step.samples if s.shard == placed.shard})
    assert f"{placed.shard} has" in caplog.text


def test_assembly_of_a_missing_shard_loses_its_samples_alone(plan: Plan) -> None:
    placed, _ = victim_of(plan)
    plan.folder.store.delete(placed.shard)

    step = PlanLoader(plan, VOCABULARY, global_packs=4).step(0)

    lost = [sample for sample in step.samples if sample.fault]
    assert {sample.shard for sample in step.samples if not sample.fault} == set(plan.index_of) - {placed.shard}
    assert lost and all("not there" in str(sample.fault) and placed.shard in str(sample.fault) for sample in lost)


def test_assembly_of_a_replaced_index_loses_its_samples_and_names_it(plan: Plan) -> None:
    placed, _ = victim_of(plan)
    store, index = plan.folder.store, plan.index_of[placed.shard]
    other = next(name for shard, name in plan.index_of.items() if shard != placed.shard)
    store.put(index, store.read_bytes(other))

    step = PlanLoader(plan, VOCABULARY, global_packs=4).step(0)

    assert {fault.shard for fault in step.faults} == {placed.shard}
    assert all(f"{index}: sha256 differs" in str(fault.fault) for fault in step.faults)


def test_assembly_of_a_plan_whose_tables_contradict_each_other_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    snapshot = write_token_source(store, "words", VOCABULARY, Amounts(texts=3, shards=1))
    shard = snapshot.folder.at(snapshot.commits[0].data.name)
    row = {"shard": shard, "sample": 0, "template": "language", "start": 0, "length": 20}
    plan = write_plan_of(store, [snapshot], [[row]], VOCABULARY, context=10)

    with pytest.raises(ManifestError, match="packs 0 to 0 are not as long"):
        PlanLoader(plan, VOCABULARY, global_packs=1).step(0)


class StuckBytes:
    """A source whose one shard never answers, as a dead mount does."""

    def __init__(self, shard: str) -> None:
        self.shard, self.answer = shard, threading.Event()

    def file(self, shard: str) -> None:
        return None

    def ranges(self, shard: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
        self.answer.wait(60)
        return [OSError(errno.EIO, "gone") for _ in ranges]

    def fetch(self, wanted: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, list[bytes | Exception]]:
        return {shard: self.ranges(shard, ranges) for shard, ranges in wanted.items()}

    def close(self) -> None:
        self.answer.set()


def test_loader_step_that_does_not_come_ends_the_run_and_names_the_shard(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    plan = write_plan(
        store,
        [write_token_source(store, "words", VOCABULARY, Amounts(texts=20, shards=1))],
        PlanSettings(context=CONTEXT),
    )
    (shard,) = plan.index_of
    source = StuckBytes(shard)
    loader = PlanLoader(plan, VOCABULARY, global_packs=2, source=source, step_timeout_s=0.5)

    with pytest.raises(RunError, match=f"step 0 did not come within 0.5 s; waiting for {shard}"):
        source_gone(loader, source)


def source_gone(loader: PlanLoader, source: StuckBytes) -> None:
    """Take a step; the thread that hangs is let go before the loader waits for it."""
    threading.Timer(1.0, source.answer.set).start()
    next(iter(loader.steps(0, 1)))


def test_loader_arrays_of_a_step_are_not_written_again_while_somebody_holds_one(plan: Plan) -> None:
    loader = PlanLoader(plan, VOCABULARY, global_packs=2, threads=0)
    held = loader.step(0).micro_batches[0].labels
    before = held.copy()

    for number in range(1, loader.steps_per_epoch):
        loader.step(number)

    np.testing.assert_array_equal(held, before)
