"""Who reads which pack of a step: a pure function, so that every rank computes it alone and all agree.

Ranks wait for each other after every micro-step's worth of work, so packs of similar cost go side by side: sorted by
cost, cut into micro-steps, dealt to the ranks there and back. With one pack a micro-step no other dealing waits less in
sum: of 64 packs of 131,072 ids, half of them video, the slowest of 8 ranks costs 1.07 of the mean, 1.53 in the order of
the plan (`benchmarks/plan.py`). The packs of a step are the same whatever this does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def deal(costs: Sequence[float], world: int, micro_packs: int) -> list[list[list[int | None]]]:
    """Deal packs 0 .. len(costs)-1 to ranks.

    Args:
        costs: of each pack, in any unit; equal ones go by number.
        world: number of ranks.
        micro_packs: packs that a rank computes at once.
    Returns:
        result[rank][micro-step] = `micro_packs` pack numbers; None is a filler, so that all ranks have as many
        micro-steps.
    Raises:
        ValueError: there are no ranks or packs, or a cost is negative or no number.
    """
    if world < 1 or micro_packs < 1 or not costs:
        raise ValueError(f"cannot deal {len(costs)} packs to {world} ranks, {micro_packs} at once")
    for number, cost in enumerate(costs):
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"pack {number} costs {cost}, which no pack can")
    order: list[int | None] = sorted(range(len(costs)), key=lambda pack: (-costs[pack], pack))  # type: ignore[index]
    hand = world * micro_packs
    order += [None] * (-len(order) % hand)
    dealt: list[list[list[int | None]]] = [[] for _ in range(world)]
    for start in range(0, len(order), hand):
        for rank in range(world):
            dealt[rank].append([])
        for place, pack in enumerate(order[start : start + hand]):
            round_, seat = divmod(place, world)
            rank = seat if round_ % 2 == 0 else world - 1 - seat
            dealt[rank][-1].append(pack)
    return dealt


def deal_steps(costs: NDArray[np.float64], rank: int, world: int, micro_packs: int) -> NDArray[np.int64]:
    """Deal many steps of as many packs at once, (steps, packs), to one rank: (steps, micro-steps, micro_packs).

    Packs are numbered within their step, fillers are -1; each step is what `deal` gives, which also raises for all.
    """
    if not (np.isfinite(costs) & (costs >= 0)).all():
        raise ValueError("a pack costs less than nothing, or no number")
    pattern = deal([0.0] * costs.shape[1], world, micro_packs)[rank]  # of equal packs: who gets the n-th dearest
    places = np.array([[-1 if place is None else place for place in hand] for hand in pattern], np.int64)
    order = np.argsort(-costs, axis=1, kind="stable")
    dealt: NDArray[np.int64] = np.where(places >= 0, order[:, places], -1)
    return dealt
