"""Which of several servers is asked next; which are left alone for a while; when to give up on all of them.

A server to which no connection can be made is *down*: nothing is sent to it until `GET /models` is answered, which is
tried with back-off, so a request waits for a restart without spending its tries and 256 of them don't knock at once.
Whether faults of a server that nobody had an answer from meanwhile are its own or the request's is found out the same
way. Lives in one event loop; nothing here is thread-safe.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tokenmill.captions.openai_faults import Fault
from tokenmill.errors import RunError

log = logging.getLogger(__name__)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_SPREAD_S = 1.0  # those who wait for the same moment are let go over so long, at most
IsUp = Callable[["Server"], Awaitable[bool]]


@dataclass(eq=False)
class Server:
    """One base URL: requests under way, when it may be asked again (monotonic), and how it did."""

    url: str
    busy: int = 0
    sent: int = 0
    open_at: float = 0.0
    shut_at: float = 0.0
    last_answer: float = -1.0
    has_seen: bool = False
    strikes: int = 0
    check: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def has_worked(self) -> bool:
        return self.last_answer >= 0


def back_off_s(number: int) -> float:
    """Return how long to wait before the `number`-th retry (from 1): 0.5 s doubling to 30 s, give or take a half."""
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(number - 1, 10)) * random.uniform(0.5, 1.5)


class ServerPool:
    """Deals requests to servers; `is_up` asks one whether it answers at all."""

    def __init__(self, urls: Sequence[str], is_up: IsUp, *, outage_s: float) -> None:
        self.servers = [Server(url) for url in urls]
        self._is_up, self._outage_s = is_up, outage_s
        self._failing_since: float | None = None
        self._broken: RunError | None = None
        self._changed = asyncio.Event()

    async def acquire(self, avoid: Server | None = None) -> Server:
        """Wait for a server and take a place at it; raises RunError when none has answered anything for `outage_s`."""
        while True:
            if self._broken is not None:
                raise RunError(str(self._broken))
            now = time.monotonic()
            ready = [server for server in self.servers if server.check is None and server.open_at <= now]
            if ready:
                best = min(ready, key=lambda server: (server is avoid, server.busy, server.sent))
                best.busy += 1
                best.sent += 1
                return best
            await self._wait(now)

    async def _wait(self, now: float) -> None:
        later = [server.open_at - now for server in self.servers if server.check is None]
        try:
            async with asyncio.timeout(min(later, default=None)):
                await self._changed.wait()
        except TimeoutError:
            await asyncio.sleep(random.uniform(0, min(_SPREAD_S, min(later) / 4)))

    def release(self, server: Server) -> None:
        """Give back the place."""
        server.busy -= 1

    def answered(self, server: Server, *, has_seen: bool) -> None:
        """Note that a server gave a whole answer, and whether it is about pictures."""
        server.has_seen = server.has_seen or has_seen
        server.last_answer, server.strikes, self._failing_since = time.monotonic(), 0, None

    async def costs_try(self, server: Server, fault: Fault, sent_at: float) -> bool:
        """Note a fault and say whether it counts against the request; raises RunError after `outage_s` without answers.

        It does not where the server is down or told everybody to wait.
        """
        self._count(fault, server)
        if fault.effect == "unreachable":
            self._set_down(server, fault)
            return False
        if not fault.costs_try:
            self._shut(server, fault, sent_at)
            return False
        if server.last_answer >= sent_at and fault.reason != "reset":  # one that dies has just answered others
            return True
        if await self._is_up(server):
            return True
        self._set_down(server, fault)
        return False

    def _shut(self, server: Server, fault: Fault, sent_at: float) -> None:
        """Leave a server alone; what was sent before it was shut tells nothing new about it."""
        now = time.monotonic()
        if sent_at >= server.shut_at:
            server.strikes, server.shut_at = server.strikes + 1, now
        wait_s = back_off_s(server.strikes) if fault.retry_after_s is None else fault.retry_after_s
        server.open_at = max(server.open_at, server.shut_at + min(wait_s, self._outage_s))

    def _set_down(self, server: Server, fault: Fault) -> None:
        if server.check is None:
            log.warning("%s is down (%s); trying it again for up to %.0f s", server.url, fault.message, self._outage_s)
            server.check = asyncio.get_running_loop().create_task(self._until_up(server, fault))

    async def _until_up(self, server: Server, fault: Fault) -> None:
        try:
            while True:
                server.strikes += 1
                await asyncio.sleep(min(back_off_s(server.strikes), self._outage_s / 4))
                if await self._is_up(server):
                    log.info("%s answers again", server.url)
                    return
                if all(other.check for other in self.servers):  # else those who ask the others tell how they fare
                    self._count(fault, server)
        except RunError as error:
            self._broken = error
        finally:
            server.check = None
            self._wake()

    def _count(self, fault: Fault, server: Server) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since > self._outage_s:
            which = f"{server.url} and {len(self.servers) - 1} more" if len(self.servers) > 1 else server.url
            raise RunError(
                f"no server has answered anything for {self._outage_s:.0f} s ({which}; last fault: {fault.reason}, "
                f"{fault.message}); what was answered is kept: run again once one works, and the rest is asked"
            )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """End what waits for servers."""
        checks = [server.check for server in self.servers if server.check is not None]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
