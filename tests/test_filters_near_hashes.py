"""Near copies by perceptual hash: the greedy result itself, at any size of the parts it is worked out in."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.near_rows import chain_of_hashes, flipped, greedy_hash_leaders, made_hashes, map_backwards

from tokenmill.filters.hash_bands import choose_masks, masks, telling_bits
from tokenmill.filters.near_hashes import hash_leaders


def hard_hashes(distance, seed=0):
    """Random ones with near copies, a chain, a cluster around a centre, equal ones, and small numbers."""
    generator = np.random.default_rng(seed)
    centre = generator.integers(0, 2**64, 1, dtype=np.uint64)
    cluster = flipped(np.repeat(centre, 1500), distance, generator)
    parts = [made_hashes(4000, 1500, distance, seed), chain_of_hashes(400, max(1, distance), seed), cluster]
    return generator.permutation(np.concatenate([*parts, np.repeat(centre, 20), np.arange(300, dtype=np.uint64)]))


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 6, 8, 16])
def test_hash_leaders_equal_brute_force(distance):
    hashes = hard_hashes(distance, seed=distance)
    assert np.array_equal(hash_leaders(hashes, max_distance=distance), greedy_hash_leaders(hashes, distance))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.lists(st.integers(0, 63), max_size=6)), max_size=60),
    st.integers(0, 8),
)
def test_hash_leaders_equal_brute_force_for_any_hashes(centres, copies, distance):
    near = [centres[number % len(centres)] ^ sum(1 << bit for bit in set(bits)) for number, bits in copies]
    hashes = np.array([*near, *centres], np.uint64)
    assert np.array_equal(hash_leaders(hashes, max_distance=distance), greedy_hash_leaders(hashes, distance))


def test_chain_in_order_of_preference_equals_brute_force():
    hashes = chain_of_hashes(5000, 3)
    leaders = hash_leaders(hashes, max_distance=4)
    assert np.array_equal(leaders, greedy_hash_leaders(hashes, 4))
    assert 500 < np.count_nonzero(leaders == np.arange(5000)) < 4500


@pytest.mark.parametrize("distance", [2, 4])
def test_hashes_that_share_most_of_their_bits_equal_brute_force(distance):
    """Flat pictures: thousands of kept hashes in one bucket of most tables."""
    generator = np.random.default_rng(3)
    few_bits = generator.integers(0, 2**26, 8000, dtype=np.uint64) << np.uint64(20)
    hashes = generator.permutation(np.concatenate([few_bits, made_hashes(4000, 500, distance)]))
    assert np.array_equal(hash_leaders(hashes, max_distance=distance), greedy_hash_leaders(hashes, distance))


def test_threads_change_nothing():
    hashes = made_hashes(300_000, 60_000, 4)
    assert np.array_equal(hash_leaders(hashes, max_distance=4), hash_leaders(hashes, max_distance=4, threads=3))


@pytest.mark.parametrize("rows_at_once", [37, 1000, 5000])
def test_segments_on_disk_give_the_same_as_memory(tmp_path, rows_at_once):
    hashes = hard_hashes(4)[: 20 * rows_at_once]
    leaders = hash_leaders(
        hashes, max_distance=4, workspace=tmp_path / "parts", rows_at_once=rows_at_once, map_parts=map_backwards
    )
    assert np.array_equal(leaders, hash_leaders(hashes, max_distance=4))


def test_segments_in_other_processes_give_the_same_as_memory(tmp_path):
    hashes = hard_hashes(3)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        leaders = hash_leaders(hashes, max_distance=3, workspace=tmp_path, rows_at_once=3000, map_parts=pool.map)
    assert np.array_equal(leaders, hash_leaders(hashes, max_distance=3))


def test_segments_need_memory_for_two_of_them_and_not_for_all_rows(tmp_path):
    """Arrays of numpy, as traced: 128 bytes a row of two segments; all rows in memory take twice that and more."""
    np.save(tmp_path / "hashes.npy", made_hashes(60_000, 12_000, 4))
    hashes = np.load(tmp_path / "hashes.npy", mmap_mode="r")
    hash_leaders(hashes[:5000], max_distance=4)
    peaks = []
    for workspace in (tmp_path / "parts", None):
        tracemalloc.start()
        hash_leaders(hashes, max_distance=4, workspace=workspace, rows_at_once=4000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 128 * 8000 + 2**20
    assert peaks[1] > 2 * peaks[0]


def test_workspace_with_files_is_refused(tmp_path):
    (tmp_path / "rows.000000.hashes.npy").touch()
    with pytest.raises(ValueError, match="not empty"):
        hash_leaders(made_hashes(100, 10, 2), max_distance=2, workspace=tmp_path, rows_at_once=50)


@pytest.mark.parametrize("count", [0, 1])
def test_no_hashes_and_one_hash_stand_for_themselves(count):
    assert hash_leaders(np.zeros(count, np.uint64), max_distance=4).tolist() == list(range(count))


@pytest.mark.parametrize("distance", [-1, 17])
def test_distance_out_of_range_is_refused(distance):
    with pytest.raises(ValueError, match="max_distance"):
        hash_leaders(np.zeros(3, np.uint64), max_distance=distance)


def test_hashes_of_another_type_are_refused():
    with pytest.raises(ValueError, match="int64"):
        hash_leaders(np.zeros(3, np.int64), max_distance=1)


def test_every_near_pair_shares_the_bits_of_a_table():
    hashes = made_hashes(2000, 0, 4)
    bits = telling_bits(hashes)
    near = flipped(hashes, 4, np.random.default_rng(5))
    for shared in (1, 2, 3):
        tables = masks(bits.places, 4, shared)
        agree = [(hashes ^ near) & np.uint64(mask) == 0 for mask in tables]
        assert np.logical_or.reduce(agree).all()


def test_bits_that_are_always_equal_are_in_no_table():
    hashes = made_hashes(5000, 0, 0) & np.uint64(0x0000FFFFFFFF0000)
    bits = telling_bits(hashes)
    assert sorted(bits.places) == list(range(16, 48))
    assert not any(mask & ~0x0000FFFFFFFF0000 for mask in choose_masks(bits, 4, 10**6, 10**6))


def test_clusters_of_thirty_thousand_copies_take_no_longer_than_as_many_others():
    """All pairs of them would be 450 million comparisons a table; what is kept of them is a few hundred."""
    generator = np.random.default_rng(1)
    cluster = flipped(np.repeat(generator.integers(0, 2**64, 1, dtype=np.uint64), 30_000), 4, generator)
    others = made_hashes(30_000, 0, 4)
    hash_leaders(others[:5000], max_distance=4)
    seconds, kept = [], []
    for hashes in (cluster, others):
        started = time.process_time()
        leaders = hash_leaders(hashes, max_distance=4)
        seconds.append(time.process_time() - started)
        kept.append(np.count_nonzero(leaders == np.arange(30_000)))
    assert kept[0] < 500 and kept[1] > 29_900
    assert seconds[0] < 5 * seconds[1] + 0.2


def test_import_of_the_segments_needs_no_numba():
    program = "import sys, tokenmill.filters.segments, tokenmill.filters.parts; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
