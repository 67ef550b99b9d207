"""A Ray cluster of several nodes on this machine, each one a raylet in a process group of its own that can be killed.

with RayNodes(workers=2) as nodes:            # a head with a job server and no work of its own, two nodes
    run_alone("submit", "score", recipe, "--address", nodes.jobs)
    nodes.kill(0)                             # as when a spot machine goes away: no warning, nothing cleaned up
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

_START_S = 120


class RayNodes:
    """The head's job server is at `jobs`, the cluster itself at `address`; each node offers one CPU."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RayNodes:
        port, dashboard = free_ports(2)
        self._folder = tempfile.mkdtemp(prefix="ray-")  # short: it holds Unix sockets
        self._environment = os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job calls for `python`
        }
        head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1")
        self._head = self._start(*head, f"--temp-dir={self._folder}")
        self.jobs, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
        try:
            wait_until_answering(f"{self.jobs}/api/version", self._head)
            self._nodes = [self._start(f"--address=127.0.0.1:{port}") for _ in range(self._workers)]
            self._wait_for_nodes(1 + self._workers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._nodes, self._head):
            _end(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self, number: int) -> None:
        """Kill a node and all that runs on it."""
        _end(self._nodes[number])

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *options]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000"]
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=self._environment, start_new_session=True)

    def _wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{self.jobs}/nodes?view=summary", timeout=10) as answer:
                if answer.read().count(b'"ALIVE"') >= count:
                    return
            time.sleep(0.2)
        raise RuntimeError("the nodes did not join")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # asked kindly, it drains for half a minute
    process.wait()


def free_ports(count: int) -> list[int]:
    """Return some ports nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until_answering(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until an HTTP server of a process answers."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the job server did not start")
