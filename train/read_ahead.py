"""Work done ahead by a few threads, taken in order; nobody waits for ever.

The threads are daemons: one that hangs in a dead mount must not keep the process from ending with an error that says
so, as those of `concurrent.futures` would.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")
_PATIENCE_S = 5.0  # for threads to end what they do when nobody wants it any more


class Threads:
    """A few daemon threads that call functions in the order in which they were given."""

    def __init__(self, count: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Have a function called; its future is cancelled if the threads end before."""
        future: Future[T] = Future()
        with self._lock:  # or it might come behind the last thread's end, and be waited for for ever
            if self._closed.is_set():
                future.cancel()
            else:
                self._tasks.put((future, task))
        return future

    def close(self, patience_s: float = _PATIENCE_S) -> None:
        """Drop what was not begun and wait a little for the rest."""
        with self._lock:
            self._closed.set()
            for _ in self._threads:
                self._tasks.put(None)
        until = time.monotonic() + patience_s
        for thread in self._threads:
            if thread is not threading.current_thread():  # it may be the last that held what is closed
                thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function = task
            if self._closed.is_set() or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # whatever it is, it belongs to who waits for the result
                future.set_exception(error)
            del future, function, task  # a result must not live until the next one


def ahead(
    function: Callable[[A], T], arguments: Iterable[A], *, threads: int, most: int, timeout_s: float | None
) -> Generator[T, None, None]:
    """Yield function(a) of each argument in order, computed by threads, at most `most` of them before they are taken.

    Raises what the function raised, in its turn, and TimeoutError if the next result takes longer than `timeout_s`.
    """
    rest = iter(arguments)
    workers = Threads(threads, "loader")
    waiting: deque[Future[T]] = deque()

    def give_out(count: int) -> None:
        for argument in islice(rest, count):
            waiting.append(workers.submit(lambda argument=argument: function(argument)))  # type: ignore[misc]

    patience_s = _PATIENCE_S
    try:
        give_out(most)
        while waiting:
            if not waiting[0].done() and not wait([waiting[0]], timeout_s).done:  # or 3 µs for nothing
                raise TimeoutError
            give_out(1)  # before the result is taken: with `most` 1, too, the next comes while this one is used
            yield waiting.popleft().result()
    except TimeoutError:
        patience_s = 0.0  # what hangs was waited for already
        raise
    finally:
        workers.close(patience_s)
