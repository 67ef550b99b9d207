"""The Prometheus endpoint of a stage that runs: `http://<driver>:<execution.metrics_port>/metrics`.

A registry of its own, so that several stages of one process, and whatever else the process measures, stay apart. It is
up from a stage's first unit to its last and costs one thread; nothing in it is secret (stage, source and phase names,
counts), and it asks for no password, so it belongs behind the cluster's own network.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RunError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

log = logging.getLogger(__name__)
_ANY_ADDRESS = "0.0.0.0"


class Endpoint:
    """Counters and gauges of one stage, served over HTTP between `start` and `stop`."""

    def __init__(self, stage: str, workers: int, port: int) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.port, self._stage = port, stage
        self._registry = own = CollectorRegistry()
        self._units = Counter("tokenmill_units", "Units by end.", ["stage", "source", "state"], registry=own)
        self._rows = Counter("tokenmill_rows", "Samples by fate.", ["stage", "source", "state"], registry=own)
        self._phases = Counter(
            "tokenmill_phase_seconds", "Seconds of the workers, by phase.", ["stage", "phase"], registry=own
        )
        self._cpu = Counter("tokenmill_cpu_seconds", "CPU-seconds of the workers.", ["stage"], registry=own)
        self._bytes = Counter("tokenmill_bytes", "Bytes from and to the store.", ["stage", "direction"], registry=own)
        self._requests = Counter("tokenmill_store_requests", "Requests to the store.", ["stage"], registry=own)
        self._retries = Counter("tokenmill_store_retries", "Requests repeated.", ["stage"], registry=own)
        self._remaining = Gauge("tokenmill_units_remaining", "Units still to do.", ["stage"], registry=own)
        self._eta = Gauge("tokenmill_eta_seconds", "Seconds to the end at this rate.", ["stage"], registry=own)
        Gauge("tokenmill_workers", "Workers of the stage.", ["stage"], registry=own).labels(stage).set(workers)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen; raises RunError when the port cannot be had."""
        from prometheus_client import start_http_server

        try:
            self._server, self._thread = start_http_server(self.port, _ANY_ADDRESS, registry=self._registry)
        except OSError as error:
            raise RunError(
                f"execution.metrics_port: cannot listen on port {self.port} ({error.strerror}); "
                "give another one, or 0 for any that is free"
            ) from error
        self.port = int(self._server.server_port)
        log.info("%s: metrics at http://localhost:%d/metrics", self._stage, self.port)

    def stop(self) -> None:
        """Close the port and wait for the thread."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    def count(self, source: str, row: Mapping[str, Any]) -> None:
        """Add a committed unit's row of the log."""
        self._units.labels(self._stage, source, "done").inc()
        for state in ("in", "kept", "dropped", "failed"):
            self._rows.labels(self._stage, source, state).inc(row[f"rows_{state}"])
        for phase, seconds in row["phases_s"].items():
            self._phases.labels(self._stage, phase).inc(max(seconds, 0.0))
        self._cpu.labels(self._stage).inc(max(row["cpu_s"], 0.0))
        self._bytes.labels(self._stage, "read").inc(row["bytes_read"])
        self._bytes.labels(self._stage, "written").inc(row["bytes_written"])
        self._requests.labels(self._stage).inc(row["requests"])
        self._retries.labels(self._stage).inc(row["retries"])

    def count_lost(self, source: str) -> None:
        """Add a try that ended without a commit."""
        self._units.labels(self._stage, source, "lost").inc()

    def remaining(self, units: int, eta_s: float | None) -> None:
        """Tell how much is left; before the first unit nothing is known of the time."""
        self._remaining.labels(self._stage).set(units)
        self._eta.labels(self._stage).set(float("nan") if eta_s is None else eta_s)
