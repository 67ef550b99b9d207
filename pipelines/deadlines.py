"""A limit on how long one unit may take, which holds even where native code hangs.

In a worker's process a timer thread in C ends the process (no lock of the interpreter needed), and whoever handed the
unit out notices. In the process of the command itself an alarm raises, which only Python code notices: a codec that
hangs there hangs the run, one reason to use workers. Costs 10 microseconds a unit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from tokenmill.errors import TokenmillError


class UnitTimeoutError(TokenmillError):
    """A unit took longer than `execution.unit_timeout_s`."""


class _Late(BaseException):
    """What the alarm raises: no `except Exception` on the way (a retry, a sample's fault) may take it for its own."""


@contextlib.contextmanager
def fatal_deadline(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer than this; its stacks go to stderr first."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
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

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Late:
        raise UnitTimeoutError(f"not done within {seconds:g} s (execution.unit_timeout_s)") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
