"""When to stop early: a signal came, or whoever started this rank is gone.

A rank whose launcher was killed would go on for hours beside the run that is started in its place, so it looks at each
step whether its parent still is its parent. Ranks learn of a stop at different moments; they agree on it by summing a
flag along with the step's metrics.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from tokenmill.train.end_signals import TO_RANKS, let_in

LAUNCHER_VARIABLE = "TOKENMILL_LAUNCHER_PID"
RENDEZVOUS_VARIABLE = "TOKENMILL_RENDEZVOUS"


class StopRequest:
    """True once this process was asked to stop by SIGTERM or SIGUSR1, or has been orphaned."""

    def __init__(self) -> None:
        self._asked = False
        self._parent = os.getppid()
        self._launcher = int(os.environ.get(LAUNCHER_VARIABLE, "0"))
        for number in TO_RANKS:
            signal.signal(number, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher too, which passes it on as SIGTERM
        let_in()

    def __bool__(self) -> bool:
        return self._asked or os.getppid() != self._parent or not _is_alive(self._launcher)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


def _is_alive(pid: int) -> bool:
    if not pid:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
