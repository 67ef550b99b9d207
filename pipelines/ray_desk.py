"""Who has which unit in hand and since when, and whether to begin any more: what Ray Data does not tell its driver.

One small actor beside the driver. Workers ask it before every unit or chunk (1 ms), so a drain stops them, a lost unit
that was never begun is not counted as a try, and a worker that is frozen past its deadline can be found and killed.
Waiting is nobody's fault: only what a process holds at this moment counts. Times are the desk's own, so the clocks of
the machines need not agree.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A worker's process: the node's Ray id, the process there and when it began (ticks), its name for people."""

    node: str
    pid: int
    born: int | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """A unit in the hands of a process that has not laid it down: for how many seconds, since it last got on."""

    place: Place
    index: int
    held_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskState:
    """What the desk knows at one moment.

    Attributes:
        begun: unit → who had it last; one who never laid it down comes before all others.
        hands: what every process has in hand, the dead ones included.
        begun_roles: of the pools of which a worker has begun, or is up and waits for something to begin with.
        offered: whether something was laid down for the next pool.
    """

    begun: dict[int, Place] = field(default_factory=dict)
    hands: list[Hand] = field(default_factory=list)
    begun_roles: frozenset[str] = frozenset()
    offered: bool = False


class _Desk:
    def __init__(self) -> None:
        self._open = True
        self._last: dict[int, Place] = {}
        self._hands: dict[Place, tuple[int, float]] = {}
        self._roles: set[str] = set()
        self._offered = False

    def arrive(self, role: str) -> None:
        self._roles.add(role)

    def begin(self, index: int, place: Place, role: str) -> bool:
        if self._open:
            self.take(index, place, role)
        return self._open

    def take(self, index: int, place: Place, role: str) -> None:
        self._roles.add(role)
        self._last[index] = place
        self._hands[place] = (index, time.monotonic())

    def renew(self, place: Place) -> None:
        if place in self._hands:
            self._hands[place] = (self._hands[place][0], time.monotonic())

    def lay_down(self, place: Place) -> None:
        self._offered = True
        self._hands.pop(place, None)

    def close(self) -> None:
        self._open = False

    def state(self) -> DeskState:
        now = time.monotonic()
        return DeskState(
            begun=self._last | {index: place for place, (index, _) in self._hands.items()},
            hands=[Hand(place=place, index=index, held_s=now - at) for place, (index, at) in self._hands.items()],
            begun_roles=frozenset(self._roles),
            offered=self._offered,
        )


class Desk:
    """The driver's side; `handle` is what workers get."""

    def __init__(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        self._ray = ray
        self.handle: Any = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=_on(here)).remote()
        self._killed: set[Place] = set()
        self._kills: dict[Any, Hand] = {}  # on their way: only over there is it known who still lives

    def close(self) -> None:
        """Let no worker begin another unit."""
        if self._ray.is_initialized():
            self.handle.close.remote()

    def state(self) -> DeskState:
        """Return what the desk knows now."""
        found: DeskState = self._ray.get(self.handle.state.remote())
        return found

    def kill_overdue(self, state: DeskState, returned: set[int], limit_s: float) -> None:
        """Kill the processes that sit on a unit for longer than `limit_s` (their own timers should have done it)."""
        self._hear_of_kills()
        for hand in state.hands:
            if hand.held_s > limit_s and hand.index not in returned and hand.place not in self._killed:
                self._killed.add(hand.place)
                kill = self._ray.remote(kill_process).options(num_cpus=0, scheduling_strategy=_on(hand.place.node))
                self._kills[kill.remote(hand.place)] = hand

    def _hear_of_kills(self) -> None:
        """Tell of the processes that were killed; who had died long before is nothing to tell of."""
        if not self._kills:
            return
        heard, _ = self._ray.wait(list(self._kills), num_returns=len(self._kills), timeout=0)
        for answer in heard:
            hand = self._kills.pop(answer)
            with contextlib.suppress(self._ray.exceptions.RayError):  # its node is gone, and so is it
                if self._ray.get(answer):
                    log.warning("worker %s sat on a unit for %.0f s and was ended", hand.place.name, hand.held_s)


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def kill_process(place: Place) -> bool:
    """Kill a process of this machine, unless its number is another one's by now; says whether it was there."""
    if born_at(place.pid) != place.born:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(place.pid, signal.SIGKILL)
        return True
    return False


def born_at(pid: int) -> int | None:
    """Return when a process of this machine began, in ticks since it booted; None where it is gone or nobody tells."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def this_place(name: str) -> Place:
    """Name the process that calls this, inside a Ray worker."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return Place(node=node, pid=os.getpid(), born=born_at(os.getpid()), name=name)


@contextlib.contextmanager
def in_hand(desk: Any, index: int, place: Place, role: str) -> Iterator[None]:
    """Hold a part of a unit while the block runs; whoever dies in it is known to have died of that unit."""
    import ray

    ray.get(desk.take.remote(index, place, role))
    try:
        yield
    finally:  # which a process that dies never comes to
        desk.lay_down.remote(place)
