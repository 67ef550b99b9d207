"""SIGTERM while units are in flight: commit or drop them, then end. Spot machines give two minutes' notice, pods 30 s.

The first SIGTERM only asks: nothing new is begun, and what is in flight may be committed within `drain_s`. A second
one, or the end of that time, drops it, which costs work but no file: whatever is not committed does not exist.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)
_LETTING_GO_S = 10.0


class Drain:
    """Whether this run was asked to end, and until when it may still commit."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._until: float | None = None

    @property
    def asked(self) -> bool:
        return self._until is not None

    @property
    def over(self) -> bool:
        """Say whether what is still in flight has to be dropped."""
        return self._until is not None and time.monotonic() >= self._until

    def ask(self) -> None:
        """Begin to drain; asking again ends it at once, as does the end of the time (in whatever runs inline)."""
        if self.asked:
            raise KeyboardInterrupt
        self._until = time.monotonic() + self._drain_s
        log.warning("asked to end: committing what is in flight, for at most %g s", self._drain_s)


@contextlib.contextmanager
def draining(drain_s: float) -> Iterator[Drain]:
    """Let SIGTERM drain instead of end while the block runs; a timer ends what does not look at `over`, another one
    the process, where even letting go of an engine or a decoder hangs."""
    drain = Drain(drain_s)
    if threading.current_thread() is not threading.main_thread():
        yield drain
        return
    timers: list[threading.Timer] = []

    def asked(number: int, frame: FrameType | None) -> None:
        drain.ask()
        timers.append(threading.Timer(drain_s, os.kill, (os.getpid(), signal.SIGTERM)))
        timers.append(threading.Timer(drain_s + _LETTING_GO_S, os._exit, (1,)))
        for timer in timers:
            timer.daemon = True
            timer.start()

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield drain
    finally:
        signal.signal(signal.SIGTERM, before)
        for timer in timers:
            timer.cancel()
