"""Who reads what of many steps, found at once: dealt, and each pack given its place in the arrays of its step.

One step at a time this took as long as writing its ids. A chunk has about a thousand packs of one window, so that
nothing is read for it that its first step would not read; a step that goes over the border of two is one of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.plan_rows import PackRows
from tokenmill.manifests.plans import Plan
from tokenmill.train.dealing import deal_steps
from tokenmill.train.pack_slots import Slots

_PACKS, _CHUNKS_KEPT = 1_024, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """How the packs of a step are shared: its packs, who we are, packs at once, and micro-steps of every rank."""

    global_packs: int
    rank: int
    world: int
    micro_packs: int
    micro_steps: int
    attention_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepChunk:
    """Steps of an epoch from `first_step` on; `hands` int64 (steps, micro-steps, packs) number packs of the chunk.

    The rest are lists with an item for each step: where the packs go, and what the whole step weighs, on all ranks.
    """

    first_step: int
    first_pack: int
    costs: PackRows
    hands: NDArray[np.int64]
    slots: list[Slots]
    weight: list[float]
    tokens: list[int]
    squares: list[int]


class StepChunks:
    """Gives the chunk that a step of an epoch is in; safe to use from several threads."""

    def __init__(self, plan: Plan, dealing: Dealing) -> None:
        self._plan, self._dealing = plan, dealing
        self._kept: OrderedDict[int, StepChunk] = OrderedDict()  # by its first step
        self._newest: StepChunk | None = None  # of most steps, looked at first
        self._lock = threading.Lock()

    def of(self, step: int) -> StepChunk:
        """Return the chunk with a step of an epoch; raises as Plan.costs."""
        newest = self._newest
        if newest is not None and 0 <= step - newest.first_step < len(newest.slots):
            return newest
        first, stop = self._bounds(step)
        with self._lock:
            chunk = self._kept.get(first)
        if chunk is None:
            chunk = self._made(first, stop)
            with self._lock:
                self._kept[first] = chunk
                while len(self._kept) > _CHUNKS_KEPT:
                    self._kept.popitem(last=False)
        self._newest = chunk
        return chunk

    def slots_of(self, chunk: StepChunk, number: int, only: int) -> Slots:
        """Place the packs of one micro-step alone, of the step with a number in its chunk."""
        starts = np.array([number * self._dealing.global_packs])
        hands = chunk.hands[number : number + 1, only : only + 1]
        return Slots.of_steps(chunk.first_pack, starts, chunk.costs, hands, self._plan.context)[0]

    def _bounds(self, step: int) -> tuple[int, int]:
        """Say which steps are dealt together with one."""
        packs = self._dealing.global_packs
        window = self._plan.window_of(step * packs)
        least, most = -(-window.first_pack // packs), window.end_pack // packs
        if step >= most:
            return step, step + 1
        steps = max(1, _PACKS // packs)
        first = step // steps * steps
        return max(first, least), min(first + steps, most)

    def _made(self, first: int, stop: int) -> StepChunk:
        dealing, steps = self._dealing, stop - first
        first_pack = first * dealing.global_packs
        costs = self._plan.costs(first_pack, min(stop * dealing.global_packs, self._plan.num_packs))
        loads = (costs.tokens + dealing.attention_share * costs.squares).reshape(steps, -1)
        dealt = deal_steps(loads, dealing.rank, dealing.world, dealing.micro_packs)
        hands = np.full((steps, dealing.micro_steps, dealing.micro_packs), -1, np.int64)
        starts = dealing.global_packs * np.arange(steps)
        hands[:, : dealt.shape[1]] = np.where(dealt < 0, -1, dealt + starts[:, None, None])
        return StepChunk(
            first_step=first,
            first_pack=first_pack,
            costs=costs,
            hands=hands,
            slots=Slots.of_steps(first_pack, starts, costs, hands, self._plan.context),
            weight=costs.weight.reshape(steps, -1).sum(axis=1).tolist(),
            tokens=costs.tokens.reshape(steps, -1).sum(axis=1).tolist(),
            squares=costs.squares.reshape(steps, -1).sum(axis=1).tolist(),
        )
