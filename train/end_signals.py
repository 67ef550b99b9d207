"""Signals that ask a run to save and end, from the launcher to its ranks.

SIGTERM, SIGINT and SIGUSR1 mean the same; ranks get SIGTERM. A rank takes seconds to import what it needs, and a signal
would end it meanwhile like any other process: ranks start with these signals blocked and let them in once they listen.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

Process = subprocess.Popen[bytes]

TO_RANKS = (signal.SIGTERM, signal.SIGUSR1)
_TO_LAUNCHER = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class EndRequest:
    """Whether this process was asked to end; passes it on to the ranks that run, and to those that come after."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._processes: Sequence[Process] = ()

    @contextmanager
    def passed_on(self, processes: Sequence[Process]) -> Iterator[None]:
        """Pass requests on to these processes meanwhile, and one that came before."""
        self._processes = processes
        if self.asked.is_set():
            self._pass_on()
        try:
            yield
        finally:
            self._processes = ()

    def take(self, _number: int, _frame: FrameType | None) -> None:
        self.asked.set()
        self._pass_on()

    def _pass_on(self) -> None:
        for process in self._processes:
            process.terminate()


@contextmanager
def listening() -> Iterator[EndRequest]:
    """Take the signals meanwhile; only a main thread can, any other gets a request that never comes."""
    request = EndRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.take) for number in _TO_LAUNCHER}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Block the signals meanwhile in this thread, and in processes it starts until they let them in."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_RANKS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_in() -> None:
    """Take from here on what was held back, in a process that listens now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_RANKS)
