"""Dealing: every pack of a step once, the same work for all ranks, packs of one cost side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.train.dealing import deal, deal_steps

costs_of_packs = st.lists(st.floats(0, 1e6) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=70)


@given(costs_of_packs, st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_deal_gives_every_pack_once_and_all_ranks_as_many_micro_steps(
    costs: list[float], world: int, micro_packs: int
) -> None:
    dealt = deal(costs, world, micro_packs)

    assert len(dealt) == world
    assert {len(rank) for rank in dealt} == {-(-len(costs) // (world * micro_packs))}
    assert {len(hand) for rank in dealt for hand in rank} == {micro_packs}
    found = [pack for rank in dealt for hand in rank for pack in hand]
    assert sorted(pack for pack in found if pack is not None) == list(range(len(costs)))
    assert found.count(None) < world * micro_packs
    assert dealt == deal(list(costs), world, micro_packs)


@given(costs_of_packs, st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_deal_one_pack_at_once_never_waits_longer_than_in_the_order_of_the_plan(costs: list[float], world: int) -> None:
    dealt = deal(costs, world, 1)

    waits = [max(costs[rank[m][0]] for rank in dealt if rank[m][0] is not None) for m in range(len(dealt[0]))]  # type: ignore[index]
    undealt = [max(costs[begin : begin + world]) for begin in range(0, len(costs), world)]

    assert sum(waits) <= sum(undealt) * (1 + 1e-12)


def test_deal_packs_of_long_clips_costs_ranks_a_tenth_more_than_the_mean_at_most() -> None:
    """Packs of 131,072 ids: a clip of 1 to 5 s each and short documents, at the attention share of Emu3's 8B."""
    clips = 4_161 * np.rint(6 * np.random.default_rng(0).uniform(1, 5, (20, 64)))
    costs = 131_072 + 1.69e-5 * clips**2

    ratios = [sides.max(axis=0) / sides.mean(axis=0) for sides in (_sides(step) for step in costs)]
    undealt = [step.reshape(8, 8) for step in costs]

    assert np.mean(ratios) <= 1.10
    assert np.mean([(step.max(axis=1) / step.mean(axis=1)).mean() for step in undealt]) > 1.3


def _sides(costs: np.ndarray) -> np.ndarray:
    return costs[np.array(deal(costs.tolist(), 8, 1))[:, :, 0]]


@pytest.mark.parametrize(
    ("costs", "world", "micro_packs", "message"),
    [
        ([], 2, 1, "cannot deal 0 packs to 2 ranks, 1 at once"),
        ([1.0], 0, 1, "cannot deal 1 packs to 0 ranks"),
        ([1.0], 1, 0, "1 ranks, 0 at once"),
        ([1.0, float("nan")], 1, 1, "pack 1 costs nan"),
        ([1.0, -2.0], 1, 1, "pack 1 costs -2.0"),
        ([float("inf")], 1, 1, "pack 0 costs inf"),
    ],
)
def test_deal_what_cannot_be_dealt_raises_value_error(
    costs: list[float], world: int, micro_packs: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        deal(costs, world, micro_packs)


@given(st.lists(st.lists(st.floats(0, 1e3), min_size=11, max_size=11), min_size=1, max_size=4),
       st.integers(1, 5), st.integers(1, 4))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_deal_steps_gives_each_rank_what_deal_gives(costs: list[list[float]], world: int, micro_packs: int) -> None:
    for rank in range(world):
        dealt = deal_steps(np.array(costs), rank, world, micro_packs)

        expected = [deal(step, world, micro_packs)[rank] for step in costs]
        assert dealt.tolist() == [[[-1 if pack is None else pack for pack in hand] for hand in one] for one in expected]


def test_deal_steps_of_a_cost_that_is_no_number_raises_value_error() -> None:
    with pytest.raises(ValueError, match="no number"):
        deal_steps(np.array([[1.0, float("nan")]]), 0, 1, 1)
