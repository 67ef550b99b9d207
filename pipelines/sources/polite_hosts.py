"""How often one host is asked: some requests at once, a pause between two, and none while it asks for quiet.

A host that does not answer six times in a row, or answers twenty times in a row that it is busy, is not asked for ten
minutes, so a dead one costs a minute and not a night. What is known of a host outlives the unit; all limits hold for
one worker: with eight workers a host may see eight times as much.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tokenmill.errors import SampleError

_SILENCES, _BUSY_ANSWERS = 6, 20
_SHUT_S = 600.0


class HostShutError(SampleError):
    """A host is not asked now."""


@dataclass(slots=True)
class HostMemory:
    """What a worker knows of a host; times are monotonic seconds."""

    next_start: float = 0.0
    quiet_until: float = 0.0
    shut_until: float = 0.0
    silences: int = 0
    busy_answers: int = 0


class PoliteHosts:
    """Hands out turns: `per_host` at once, `interval_s` apart, waiting `longest_wait_s` at most for a host's quiet.

    `memory` is kept by the worker, and used from one event loop at a time.
    """

    def __init__(
        self, memory: dict[str, HostMemory], *, per_host: int, interval_s: float, longest_wait_s: float
    ) -> None:
        self._interval_s, self._longest_wait_s = interval_s, longest_wait_s
        self._memory = memory
        self._free: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(per_host))
        self._forget()

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait for a turn at a host and hold it; raises HostShutError (transient) where waiting is no use."""
        async with self._free[name]:
            await self._wait(self._host(name))
            yield

    async def begin(self, name: str) -> None:
        """Wait for the moment to start a request, right before it: who has a turn may have waited for other things."""
        host = self._host(name)
        await self._wait(host)
        host.next_start = time.monotonic() + self._interval_s

    def quiet(self, name: str, seconds: float) -> None:
        """Note that a host asked not to be asked for some time."""
        host = self._host(name)
        host.quiet_until = max(host.quiet_until, time.monotonic() + seconds)

    def answered(self, name: str, *, busy: bool) -> None:
        """Note that a host is there, and whether it had no time."""
        host = self._host(name)
        host.silences = 0
        host.busy_answers = host.busy_answers + 1 if busy else 0
        self._shut(host, host.busy_answers >= _BUSY_ANSWERS)

    def silent(self, name: str) -> None:
        """Note that a host gave no answer."""
        host = self._host(name)
        host.silences += 1
        self._shut(host, host.silences >= _SILENCES)

    def _host(self, name: str) -> HostMemory:
        return self._memory.setdefault(name, HostMemory())

    def _shut(self, host: HostMemory, is_enough: bool) -> None:
        host.shut_until = time.monotonic() + _SHUT_S if is_enough else 0.0

    def _forget(self) -> None:
        """Drop the hosts of earlier units that may be asked as any other: there are millions of hosts."""
        now = time.monotonic()
        for name in [name for name, host in self._memory.items() if max(host.quiet_until, host.shut_until) <= now]:
            del self._memory[name]

    async def _wait(self, host: HostMemory) -> None:
        while (wait_s := self._wait_s(host)) > 0:
            await asyncio.sleep(wait_s)

    def _wait_s(self, host: HostMemory) -> float:
        now = time.monotonic()
        if host.shut_until > now and host.silences:
            raise HostShutError("connect", f"its host did not answer {_SILENCES} times in a row", transient=True)
        if host.shut_until > now:
            raise HostShutError("host_busy", f"its host was busy {_BUSY_ANSWERS} times in a row", transient=True)
        if host.quiet_until - now > self._longest_wait_s:
            raise HostShutError("host_busy", "its host asked for a longer pause than we wait", transient=True)
        return max(host.quiet_until, host.next_start) - now
