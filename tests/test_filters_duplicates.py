"""De-duplication: recall against brute force, who survives, and independence of the order of rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.near_rows import flipped, made_hashes

from tokenmill.filters.duplicates import find_duplicates
from tokenmill.filters.near_hashes import hash_leaders


def samples(**columns):
    height = len(next(iter(columns.values())))
    defaults = {
        "source": [0] * height,
        "key": [f"{number:04d}" for number in range(height)],
        "digest": [f"digest {number}" for number in range(height)],
        "phash": [None] * height,
        "pixels": [1] * height,
        "kept_before": [False] * height,
    }
    return pl.DataFrame(defaults | columns, schema_overrides={"phash": pl.UInt64, "digest": pl.String})


def outcome(rows, max_distance=4):
    found = find_duplicates(rows, max_distance=max_distance)
    keys = rows["key"].to_list()
    return {keys[row]: (reason, keys[of]) for row, reason, of in found.iter_rows()}


def test_exact_copies_drop_in_favour_of_the_first_key():
    rows = samples(digest=["x", "y", "x", None, None], key=["c", "d", "b", "e", "f"])
    assert outcome(rows) == {"c": ("exact_duplicate", "b")}


def test_near_copies_drop_in_favour_of_more_pixels():
    rows = samples(phash=[0b0, 0b11, 0b111111], pixels=[10, 20, 5])
    assert outcome(rows) == {"0000": ("near_duplicate", "0001"), "0002": ("near_duplicate", "0001")}
    assert outcome(rows, max_distance=1) == {}


def test_copy_of_what_was_kept_before_drops_whatever_its_size():
    rows = samples(phash=[7, 7], digest=["a", "b"], pixels=[10**6, 10], kept_before=[False, True])
    assert outcome(rows) == {"0000": ("near_duplicate", "0001")}


def test_source_decides_before_key_between_equals():
    rows = samples(digest=["x", "x"], source=[1, 0], key=["a", "b"])
    assert outcome(rows) == {"a": ("exact_duplicate", "b")}


def test_chain_of_near_copies_keeps_what_is_far_from_every_survivor():
    chain = [0, 0b1111, 0b1111_1111, 0b1111_1111_1111]
    assert outcome(samples(phash=chain)) == {
        "0001": ("near_duplicate", "0000"),
        "0003": ("near_duplicate", "0002"),
    }


def test_exact_copy_of_a_dropped_sample_names_the_survivor():
    rows = samples(digest=["small", "small", "large"], phash=[1, 1, 0], pixels=[1, 1, 9])
    assert outcome(rows) == {"0000": ("near_duplicate", "0002"), "0001": ("near_duplicate", "0002")}


def test_samples_without_digest_and_hash_are_never_copies():
    assert outcome(samples(digest=[None, None], phash=[None, None])) == {}


def test_no_samples_give_no_copies():
    assert find_duplicates(samples(digest=[]), max_distance=4).height == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=40), st.data()
)
def test_outcome_does_not_depend_on_the_order_of_rows_and_every_drop_is_near_a_survivor(drawn, data):
    hashes, digests, pixels, kept = (list(column) for column in zip(*drawn, strict=True)) if drawn else ([], [], [], [])
    rows = samples(
        phash=hashes, digest=[f"{h}-{d}" for h, d in zip(hashes, digests, strict=True)], pixels=pixels, kept_before=kept
    )
    found = outcome(rows, max_distance=2)
    order = data.draw(st.permutations(range(rows.height)))
    assert outcome(rows[list(order)], max_distance=2) == found
    by_key = dict(zip(rows["key"], hashes, strict=True))
    assert all(of not in found and (by_key[key] ^ by_key[of]).bit_count() <= 2 for key, (_, of) in found.items())


def test_appended_samples_never_drop_what_was_kept_before():
    hashes = made_hashes(2000, 800, 3)
    first = samples(phash=hashes[:1000])
    kept = set(range(1000)) - set(find_duplicates(first, max_distance=4)["row"])
    both = samples(phash=hashes, pixels=[1] * 1000 + [9] * (len(hashes) - 1000))
    both = both.with_columns(pl.Series("kept_before", [row in kept for row in range(len(hashes))]))
    assert kept.isdisjoint(find_duplicates(both, max_distance=4)["row"])


def test_two_hundred_thousand_samples_with_dense_clusters_are_decided():
    hashes = made_hashes(200_000, 40_000, 4)
    cluster = flipped(np.full(2000, hashes[0]), 3, np.random.default_rng(1))
    rows = samples(phash=np.concatenate([hashes, cluster]))
    found = find_duplicates(rows, max_distance=4)
    kept = np.delete(rows["phash"].to_numpy(), found["row"])
    assert np.array_equal(hash_leaders(kept, max_distance=4), np.arange(len(kept)))
    distances = np.bitwise_count(
        rows["phash"].gather(found["row"]).to_numpy() ^ rows["phash"].gather(found["of"]).to_numpy()
    )
    assert distances.max() == 4
    assert set(found["of"]).isdisjoint(found["row"])


@pytest.mark.parametrize("distance", [-1, 17])
def test_distance_out_of_range_is_refused(distance):
    with pytest.raises(ValueError, match="max_distance"):
        find_duplicates(samples(digest=["a"]), max_distance=distance)
