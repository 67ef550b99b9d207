"""Named places where a process can be made to die, so that tests can kill a run exactly there.

Costs one environment look-up a call. `TOKENMILL_FAULT=commit:before-record:2` sends SIGKILL to this process the second
time it passes that point; with `TOKENMILL_FAULT_ONCE=<file>` only the first process to get there dies (the file is
created exclusively), which is what a pool of workers that restarts its dead needs.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die here, by SIGKILL, if the environment asks for it; otherwise do nothing."""
    wanted = os.environ.get("TOKENMILL_FAULT")
    if not wanted:
        return
    point, _, count = wanted.rpartition(":")
    if not count.isdigit():
        point, count = wanted, "1"
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count) and _first_to_die():
        os.kill(os.getpid(), signal.SIGKILL)


def _first_to_die() -> bool:
    marker = os.environ.get("TOKENMILL_FAULT_ONCE")
    if not marker:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
