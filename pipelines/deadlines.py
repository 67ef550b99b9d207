"""A limit on how long one unit may take, which holds even where native code hangs.

In a worker's process a timer thread in C ends the process (no lock of the interpreter needed), and whoever handed the
unit out notices. In the process of the command itself an alarm raises, which only Python code notices: a codec that
hangs there hangs the run, one reason to use workers. Costs 10 microseconds a unit.

A unit that may take longer than that in good order (questions to a slow server) says so by `renew`: the time then runs
anew, here and, through `on_renewal`, wherever else it is kept.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

from tokenmill.errors import TokenmillError


class UnitTimeoutError(TokenmillError):
    """A unit took longer than `execution.unit_timeout_s`."""


class _Late(BaseException):
    """What the alarm raises: no `except Exception` on the way (a retry, a sample's fault) may take it for its own."""


@dataclass
class _Running:
    """A deadline that runs in this process: how to start it anew, and when that was done last."""

    seconds: float
    restart: Callable[[], object]
    _since: float = field(default_factory=time.monotonic)

    def renew(self) -> None:
        now = time.monotonic()
        if now - self._since >= min(_RENEW_EVERY_S, self.seconds / 10):
            self._since = now
            self.restart()


_RENEW_EVERY_S = 60.0
_running: list[_Running] = []  # the innermost last: a process does one unit at a time


def renew() -> None:
    """Say that the unit in hand gets on: its time runs anew, from now or from at most a minute ago.

    Costs a look at the clock; outside of a deadline it does nothing.
    """
    if _running:
        _running[-1].renew()


@contextlib.contextmanager
def _renewable(seconds: float, restart: Callable[[], object]) -> Iterator[None]:
    _running.append(_Running(seconds, restart))
    try:
        yield
    finally:
        _running.pop()


@contextlib.contextmanager
def fatal_deadline(seconds: float, on_renewal: Callable[[], object] = lambda: None) -> Iterator[None]:
    """End this process when the block takes longer than this; its stacks go to stderr first."""

    def start() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    def restart() -> None:
        start()
        on_renewal()

    start()
    try:
        with _renewable(seconds, restart):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def raised_deadline(seconds: float) -> Iterator[None]:
    """Raise UnitTimeoutError in the main thread when the block takes longer than this; elsewhere do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    def start() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, late)
    start()
    try:
        with _renewable(seconds, start):
            yield
    except _Late:
        raise UnitTimeoutError(f"not done within {seconds:g} s (execution.unit_timeout_s)") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
