"""Named places where a process can be made to die, so that tests can kill a run exactly there.

Costs one environment look-up a call. `TOKENMILL_FAULT=commit:before-record:2` sends SIGKILL to this process the second
time it passes that point; with `TOKENMILL_FAULT_ONCE=<file>` only the first process to get there dies (the file is
created exclusively), which is what a pool of workers that restarts its dead needs. `TOKENMILL_FAULT_LOG=<file>` adds a
line for every point that any process passes, so that a test can count what was done how often.
`TOKENMILL_FAULT_ACTION` makes it `hang` (sleep for ever) or `freeze` (SIGSTOP) instead of die, or names the signal that
it dies of (`SIGSEGV`).
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die here, by SIGKILL, if the environment asks for it; otherwise do nothing."""
    _note(name)
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
        _act(os.environ.get("TOKENMILL_FAULT_ACTION", "die"))


def _act(action: str) -> None:
    if action == "hang":
        while True:
            time.sleep(3600)
    named = {"freeze": signal.SIGSTOP, "die": signal.SIGKILL}
    os.kill(os.getpid(), named[action] if action in named else signal.Signals[action])


def _note(name: str) -> None:
    path = os.environ.get("TOKENMILL_FAULT_LOG")
    if path:
        with Path(path).open("a") as file:
            file.write(f"{name}\n")


def _first_to_die() -> bool:
    marker = os.environ.get("TOKENMILL_FAULT_ONCE")
    if not marker:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
