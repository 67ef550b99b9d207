"""Which captions of a sample are used."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.captions.choice import Chosen, chosen

KEYS = [f"key-{number}" for number in range(10_000)]
USABLE = {"dense": ["a long one"], "short": ["a short one"], "original": ["old, first", "old, second", "old, third"]}


def columns(slots, usable=USABLE, *, key="a", seed=0):
    return [one.column for one in chosen(slots, usable, key=key, seed=seed)]


def test_slots_of_one_column_give_their_captions_in_order():
    slots = [{"short": 1.0}, {"dense": 1.0}]
    assert chosen(slots, USABLE, key="a", seed=0) == [Chosen("short", "a short one"), Chosen("dense", "a long one")]


def test_slot_of_one_column_gives_all_wordings_and_a_slot_of_several_one():
    assert columns([{"original": 1.0}]) == ["original"] * 3
    texts = {
        tuple(one.text for one in chosen([{"original": 1.0, "gone": 1.0}], USABLE, key=key, seed=0))
        for key in KEYS[:100]
    }
    assert texts == {("old, first",), ("old, second",), ("old, third",)}


def test_wording_of_a_slot_stays_when_another_becomes_usable():
    slots = [{"original": 1.0, "dense": 0.0}]
    for key in KEYS[:300]:
        (before,) = chosen(slots, {"original": USABLE["original"][:2]}, key=key, seed=0)
        (after,) = chosen(slots, USABLE, key=key, seed=0)
        assert after in (before, Chosen("original", "old, third"))


def test_equal_texts_come_once_from_the_first_slot():
    usable = {"dense": ["same"], "short": ["same", "other"]}
    assert chosen([{"dense": 1.0}, {"short": 1.0}], usable, key="a", seed=0) == [
        Chosen("dense", "same"),
        Chosen("short", "other"),
    ]


def test_column_of_weight_zero_stands_in_only_when_no_other_is_usable():
    slots = [{"original": 0.0, "short": 0.0, "dense": 1.0}]
    assert {columns(slots, key=key)[0] for key in KEYS[:200]} == {"dense"}
    without = {"short": ["a"], "original": ["b"]}
    assert columns(slots, without) == ["original"]
    assert columns(slots, {**without, "original": []}) == ["short"]


def test_sample_without_a_usable_caption_gets_none():
    assert chosen([{"dense": 1.0}, {"short": 1.0}], {"dense": [], "other": ["x"]}, key="a", seed=0) == []


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (2.0, 6.0), (1e-3, 1e-3)])
def test_columns_are_drawn_as_often_as_their_weights_say(weights):
    slots = [{"dense": weights[0], "short": weights[1]}]
    share = Counter(columns(slots, key=key)[0] for key in KEYS)["dense"] / len(KEYS)
    expected = weights[0] / sum(weights)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(KEYS)) ** 0.5


def test_three_columns_of_which_one_is_missing_share_by_the_weights_left():
    slots = [{"dense": 0.5, "short": 0.3, "original": 0.2}]
    usable = {"short": ["a"], "original": ["b"]}
    counts = Counter(columns(slots, usable, key=key)[0] for key in KEYS)
    assert abs(counts["short"] / len(KEYS) - 0.6) < 0.02


def test_draws_of_two_slots_do_not_hang_together():
    slots = [{"dense": 0.5, "short": 0.5}, {"dense": 0.5, "short": 0.5}]
    both = Counter(len(chosen(slots, USABLE, key=key, seed=0)) for key in KEYS)
    assert abs(both[1] / len(KEYS) - 0.5) < 0.02


def test_another_slot_draws_no_other_anew():
    slots = [{"dense": 0.5, "short": 0.5}]
    more = [*slots, {"original": 1.0}]
    assert all(columns(slots, key=key) == columns(more, key=key)[:1] for key in KEYS[:1000])


def test_column_that_becomes_usable_changes_only_samples_it_wins():
    slots = [{"dense": 0.4, "short": 0.4, "original": 0.2}]
    changed = 0
    for key in KEYS[:2000]:
        (before,) = columns(slots, {"dense": ["a"], "short": ["b"]}, key=key)
        (after,) = columns(slots, {"dense": ["a"], "short": ["b"], "original": ["c"]}, key=key)
        assert after in (before, "original")
        changed += before != after
    assert abs(changed / 2000 - 0.2) < 0.04


def test_greater_weight_takes_samples_only_for_itself():
    for key in KEYS[:1000]:
        (before,) = columns([{"dense": 1.0, "short": 1.0}], key=key)
        (after,) = columns([{"dense": 1.5, "short": 1.0}], key=key)
        assert after in (before, "dense")


def test_another_seed_draws_anew():
    slots = [{"dense": 0.5, "short": 0.5}]
    same = sum(columns(slots, key=key, seed=1) == columns(slots, key=key, seed=2) for key in KEYS[:2000])
    assert abs(same / 2000 - 0.5) < 0.05


@given(
    slots=st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6), min_size=1), max_size=4),
    usable=st.dictionaries(st.sampled_from("abcd"), st.lists(st.text(max_size=3), max_size=3)),
    key=st.text(max_size=5),
)
def test_chosen_captions_are_distinct_usable_texts_of_the_slots(slots, usable, key):
    found = chosen(slots, usable, key=key, seed=0)
    assert len({one.text for one in found}) == len(found)
    assert all(one.text in usable[one.column] and any(one.column in slot for slot in slots) for one in found)
    assert bool(found) == any(usable.get(column) for slot in slots for column in slot)
    assert found == chosen(slots, usable, key=key, seed=0)
