"""How often one host is asked: some requests at once, a pause between two, and none while it asks for quiet.

A host that does not answer six times in a row is not asked again in this unit, so a dead one costs a minute and not a
night. All limits hold for one worker: with eight workers a host may see eight times as much.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tokenmill.errors import SampleError

_SILENCES = 6


@dataclass
class _Host:
    free: asyncio.Semaphore
    next_start: float = 0.0
    quiet_until: float = 0.0
    silences: int = field(default=0)


class PoliteHosts:
    """Hands out turns: `per_host` at once, `interval_s` apart, waiting `longest_wait_s` at most for a host's quiet."""

    def __init__(self, *, per_host: int, interval_s: float, longest_wait_s: float) -> None:
        self._interval_s, self._longest_wait_s = interval_s, longest_wait_s
        self._hosts: dict[str, _Host] = defaultdict(lambda: _Host(asyncio.Semaphore(per_host)))

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait for a turn at a host and hold it; raises SampleError (transient) where waiting is no use."""
        host = self._hosts[name]
        async with host.free:
            await self._wait(host)
            yield

    async def begin(self, name: str) -> None:
        """Wait for the moment to start a request, right before it: who has a turn may have waited for other things."""
        host = self._hosts[name]
        await self._wait(host)
        host.next_start = time.monotonic() + self._interval_s

    def quiet(self, name: str, seconds: float) -> None:
        """Note that a host asked not to be asked for some time."""
        host = self._hosts[name]
        host.quiet_until = max(host.quiet_until, time.monotonic() + seconds)

    def answered(self, name: str) -> None:
        """Note that a host is there."""
        self._hosts[name].silences = 0

    def silent(self, name: str) -> None:
        """Note that a host could not be reached."""
        self._hosts[name].silences += 1

    async def _wait(self, host: _Host) -> None:
        while (wait_s := self._wait_s(host)) > 0:
            await asyncio.sleep(wait_s)

    def _wait_s(self, host: _Host) -> float:
        if host.silences >= _SILENCES:
            raise SampleError("connect", f"its host did not answer {_SILENCES} times in a row", transient=True)
        now = time.monotonic()
        if host.quiet_until - now > self._longest_wait_s:
            raise SampleError("host_busy", "its host asked for a longer pause than we wait", transient=True)
        return max(host.quiet_until, host.next_start) - now
