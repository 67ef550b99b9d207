"""One command on several machines at once, over ssh: their launchers meet by NNODES, NODE_RANK and MASTER_ADDR.

What ends a launcher far away is the end of its standard input: ssh hands on no signal, and with this neither a lost
connection nor a killed terminal leaves ranks behind. A launcher that is ended so saves, as at any SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.train.hostfile import Hosts

log = logging.getLogger(__name__)

DEFAULT_PORT = "29500"
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=30")
_FORWARDED = ("NCCL_", "GLOO_", "TOKENMILL_", "PYTHONPATH")
_POLL_S = 0.2
_GRACE_S = 300.0  # for a machine to save and end, before its connection is cut
_LOG_LINES = 15
# The command runs beside a reader of standard input, at whose end it is told to end.
_SCRIPT = """exec 3<&0
{command} </dev/null & job=$!
( cat <&3; kill -TERM "$job" ) >/dev/null 2>&1 & reader=$!
wait "$job"; code=$?
kill "$reader" 2>/dev/null
exit "$code\""""


@dataclass(slots=True)
class _Machine:
    name: str
    process: subprocess.Popen[bytes]
    said: IO[bytes] | None  # None: on our own standard error

    def tail(self) -> str:
        if self.said is None:
            return "it said why above"
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(["the last lines it said:", *lines])


def run_on_hosts(hosts: Hosts, command: Sequence[str]) -> None:
    """Run a command on every machine, in this folder and by these paths, until all have ended well.

    What the first one says comes through. SIGTERM, SIGINT and SIGUSR1 to this process make all of them save and end.
    Raises RecipeError or RunError with the first machine that ended otherwise; the others are ended for it.
    """
    with ExitStack() as stack:
        machines = [stack.enter_context(_started(hosts, number, command)) for number in range(len(hosts.names))]
        stack.enter_context(_ending_at_signals(machines))
        while _goes_on(machines):
            time.sleep(_POLL_S)
        failed = next((one for one in machines if one.process.poll()), None)
        _end(machines)
        if failed is not None:
            raise _error(failed)


def _error(machine: _Machine) -> RecipeError | RunError:
    code = machine.process.returncode
    how = "ssh could not reach it" if code == 255 else f"ended with exit code {code}"
    kind = RecipeError if code == RecipeError.exit_code else RunError
    return kind(f"train: {machine.name}: {how}; {machine.tail()}")


@contextmanager
def _started(hosts: Hosts, number: int, command: Sequence[str]) -> Iterator[_Machine]:
    name = hosts.names[number]
    script = _script(command, _environment(hosts, number))
    with ExitStack() as stack:
        said = None if number == 0 else stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            [*_SSH, name, script],
            stdin=subprocess.PIPE,
            stdout=None if said is None else subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C is ours to hand on
        )
        machine = _Machine(name, process, said)
        try:
            yield machine
        finally:
            _end([machine])


def _environment(hosts: Hosts, number: int) -> dict[str, str]:
    forwarded = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    return forwarded | {
        "NNODES": str(len(hosts.names)),
        "NODE_RANK": str(number),
        "MASTER_ADDR": hosts.address,
        "MASTER_PORT": os.environ.get("MASTER_PORT", DEFAULT_PORT),
    }


def _script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Give what the shell of the other machine is told, whichever shell that is."""
    given = [f"{name}={value}" for name, value in environment.items()]
    inner = _SCRIPT.format(command=shlex.join(["env", *given, *command]))
    return f"cd {shlex.quote(str(Path.cwd()))} && exec sh -c {shlex.quote(inner)}"


def _goes_on(machines: Sequence[_Machine]) -> bool:
    codes = [machine.process.poll() for machine in machines]
    return None in codes and not any(codes)


def _hang_up(machines: Sequence[_Machine]) -> None:
    for machine in machines:
        if machine.process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended already
                machine.process.stdin.close()


def _end(machines: Sequence[_Machine]) -> None:
    """Let every machine save and end, then cut the connections that are left."""
    _hang_up(machines)
    deadline = time.monotonic() + _GRACE_S
    for machine in machines:
        try:
            machine.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s has not ended; look there", machine.name)
            machine.process.kill()
            machine.process.wait()


@contextmanager
def _ending_at_signals(machines: Sequence[_Machine]) -> Iterator[None]:
    """Take a signal for the wish that all machines save and end; only a main thread hears any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hang_up(_number: int, _frame: FrameType | None) -> Any:
        _hang_up(machines)

    before = {number: signal.signal(number, hang_up) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
