"""An event loop in a thread of its own, and the shelf where it puts what is done for a caller that blocks.

The caller of an engine decodes pictures and writes files between two answers; requests on the wire must go on
meanwhile. Its thread is woken once for several answers: a switch between threads costs as much as half an answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")
_CLOSE_S = 10.0


class BackgroundLoop:
    """Runs coroutines until `close`, in a thread that does not keep the process alive."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine to its end and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self, at_last: Callable[[], Awaitable[None]]) -> None:
        """Cancel what still runs, do what is to be done `at_last`, and end the thread; harmless when done before."""
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_wind_up(at_last), self.loop).result(_CLOSE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSE_S)
        self.loop.close()


async def _wind_up(at_last: Callable[[], Awaitable[None]]) -> None:
    while others := asyncio.all_tasks() - {asyncio.current_task()}:  # again: what ends may begin something
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    await at_last()
    await asyncio.sleep(0)  # transports say goodbye in the next round


class Shelf(Generic[Value]):
    """What one thread has finished and another takes, or the error that ended the work."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._values: list[Value] = []
        self._error: BaseException | None = None
        self._wanted = 0  # how many values the other thread waits for; 0: it does not wait

    def put(self, value: Value) -> None:
        with self._ready:
            self._values.append(value)
            if self._wanted and len(self._values) >= self._wanted:
                self._wanted = 0
                self._ready.notify()

    def fail(self, error: BaseException) -> None:
        """End the work: what is finished can still be taken, then `take` raises the error."""
        with self._ready:
            self._error = self._error or error
            self._ready.notify()

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def __len__(self) -> int:
        return len(self._values)

    def take(self, at_least: int, patience_s: float) -> list[Value]:
        """Wait for so many values, after `patience_s` for any, and take all there are."""
        with self._ready:
            while not self._values or len(self._values) < at_least:
                if self._error is not None:
                    break
                self._wanted = at_least
                if not self._ready.wait(patience_s):
                    at_least = 1
            self._wanted = 0
            values, self._values = self._values, []
        if not values and self._error is not None:
            raise self._error
        return values
