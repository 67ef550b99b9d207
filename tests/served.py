"""Servers in processes of their own: ready when they print their URL, killed by SIGKILL, back on the same port.

class Echo(Served):
    module = "tests.echo_server"               # python -m tests.echo_server --port N, prints http://127.0.0.1:N

with Echo() as server:
    server.kill(); server.restart()            # server.url stays the same
"""

from __future__ import annotations

import selectors
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
_READY_S = 60.0


class Served:
    """A server as a subprocess, while the block runs."""

    module: ClassVar[str]
    port = 0

    def arguments(self) -> list[str]:
        """Say what follows `python -m module`."""
        return [f"--port={self.port}"]

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """What goes into `base_urls`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def restart(self) -> None:
        """Start it (again), on the same port, and return when it answers."""
        command = [sys.executable, "-m", self.module, *self.arguments()]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.port = int(urlsplit(self._first_line()).port or 0)

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline().strip() if selector.select(_READY_S) else ""
        if not line:
            self.kill()
            raise RuntimeError(f"{self.module} did not start within {_READY_S:.0f} s (exit {self.process.returncode})")
        return line

    def kill(self) -> None:
        """End it by SIGKILL: connections break, nothing is said."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
