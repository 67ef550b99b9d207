"""A Ray cluster of several nodes on this machine, each one a raylet of its own that can be killed.

with RayNodes(workers=2) as nodes:            # a head with a job server and no work of its own, two nodes
    run_alone("submit", "score", recipe, "--address", nodes.jobs)
    nodes.kill(0)                             # as when a spot machine goes away: no warning, nothing cleaned up
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

_START_S = 120


class RayNodes:
    """The head's job server is at `jobs`, the cluster itself at `address`; the head and each node offer one CPU."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def __enter__(self) -> RayNodes:
        from ray.cluster_utils import Cluster

        self._patch = pytest.MonkeyPatch()
        self._patch.setenv("RAY_AUTH_MODE", "disabled")
        self._patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # a job calls for `python`
        (dashboard,) = free_ports(1)
        each = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        head = {**each, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(wait=False, **each) for _ in range(self._workers)]
        self._cluster.wait_for_nodes(timeout=_START_S)
        self.jobs, self.address = f"http://127.0.0.1:{dashboard}", self._cluster.address
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()
        self._patch.undo()

    def kill(self, number: int) -> None:
        """Kill a node's raylet, and with it all that runs there."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)


def free_ports(count: int) -> list[int]:
    """Return some ports nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
