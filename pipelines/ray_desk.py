"""Which units were begun, where and when; and whether to begin any more: what Ray Data does not tell its driver.

One small actor beside the driver. Workers ask it before every unit (1 ms), so a drain stops them, a lost unit that was
never begun is not counted as a try, and a worker that is frozen past its unit's deadline can be found and killed.
Times are the desk's own, so the clocks of the machines need not agree.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A worker's process: the node's Ray id, the process there, and its name for people."""

    node: str
    pid: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A unit that was begun: where, how long ago in seconds, and whether that process still has it in hand."""

    place: Place
    ago_s: float
    there: bool


class _Desk:
    def __init__(self) -> None:
        self._open = True
        self._begun: dict[int, tuple[Place, float]] = {}
        self._left: set[int] = set()

    def begin(self, index: int, place: Place) -> bool:
        if self._open:
            self._begun[index] = (place, time.monotonic())
            self._left.discard(index)
        return self._open

    def leave(self, index: int) -> None:
        self._left.add(index)

    def close(self) -> None:
        self._open = False

    def begun(self) -> dict[int, Begun]:
        now = time.monotonic()
        return {
            index: Begun(place=place, ago_s=now - at, there=index not in self._left)
            for index, (place, at) in self._begun.items()
        }


class Desk:
    """The driver's side; `handle` is what workers get."""

    def __init__(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        self._ray = ray
        self.handle: Any = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=_on(here)).remote()
        self._killed: set[tuple[int, Place]] = set()

    def close(self) -> None:
        """Let no worker begin another unit."""
        if self._ray.is_initialized():
            self.handle.close.remote()

    def begun(self) -> dict[int, Begun]:
        """Return every unit that was begun, by index; the latest begin counts."""
        found: dict[int, Begun] = self._ray.get(self.handle.begun.remote())
        return found

    def kill_overdue(self, returned: set[int], limit_s: float) -> None:
        """Kill the workers that sit on a unit for longer than `limit_s` (their own timers should have done it)."""
        for index, begun in self.begun().items():
            late = index not in returned and begun.there and begun.ago_s > limit_s
            if late and (index, begun.place) not in self._killed:
                self._killed.add((index, begun.place))
                log.warning("worker %s sits on a unit for %.0f s: killing it", begun.place.name, begun.ago_s)
                kill = self._ray.remote(_kill).options(num_cpus=0, scheduling_strategy=_on(begun.place.node))
                kill.remote(begun.place.pid)


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def this_place(name: str) -> Place:
    """Name the process that calls this, inside a Ray worker."""
    import ray

    return Place(node=ray.get_runtime_context().get_node_id(), pid=os.getpid(), name=name)
