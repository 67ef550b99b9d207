"""Bytes that all downloads of a worker may hold together, those that wait to be packed included.

A download waits for room before it asks its host, never while it holds a connection. One that turns out larger than
expected while there is no room gives up and begins again later; only the row that the worker waits for may take more
than the limit. So what is held is bounded by the limit and two pictures, and nothing can wait for itself.
"""

from __future__ import annotations

import asyncio


class CrowdedError(Exception):
    """There is no room for the rest of a picture now."""


class ByteBudget:
    """Used from one event loop alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = 0
        self._changed = asyncio.Event()
        self.used = 0

    async def share(self, row: int, expected: int) -> Share:
        """Wait until `expected` bytes are free, or until `row` is the one that is waited for."""
        while not self.fits(row, expected):
            self._changed.clear()
            await self._changed.wait()
        self.used += expected
        return Share(self, row, expected)

    def fits(self, row: int, more: int) -> bool:
        return row <= self._first or self.used + more <= self._limit

    def give(self, count: int) -> None:
        self.used -= count
        self._changed.set()

    def wait_for(self, row: int) -> None:
        """Note which row the worker waits for."""
        self._first = row
        self._changed.set()


class Share:
    """What one download holds; `wanted` is what it would need."""

    def __init__(self, budget: ByteBudget, row: int, count: int) -> None:
        self._budget, self._row, self._held = budget, row, count
        self.wanted = count

    def grow(self, total: int) -> None:
        """Hold `total` bytes if that is more than before; raises CrowdedError where there is no room."""
        more = total - self._held
        if more <= 0:
            return
        if not self._budget.fits(self._row, more):
            self.wanted = 2 * total  # or one of unknown length would begin again with every piece
            raise CrowdedError
        self._budget.used += more
        self._held = total

    def settle(self, kept: int) -> None:
        """Give back all but the bytes that stay in memory."""
        self._budget.give(self._held - kept)
        self._held = kept
