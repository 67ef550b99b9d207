"""What a stage's run did, unit by unit: rows in `logs/` beside the data, and a Prometheus endpoint while it runs.

Rows and not sentences, so that "which source, which phase, which worker" is one query afterwards. They are outside
every digest, and a log that cannot be written warns instead of ending a run. An object store cannot append, so the
newest part is written again every minute and closed at 4 MiB (some 10,000 units): a run of a million units writes
each row about 1.5 times and keeps one part on the local disk.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

from tokenmill.errors import StorageError
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.execution import Finished
from tokenmill.pipelines.metrics_endpoint import Endpoint

log = logging.getLogger(__name__)
_PUBLISH_EVERY_S = 60.0
_PART_BYTES = 4 * 2**20
TRAFFIC = ("requests", "retries", "bytes_read", "bytes_written")


class StageMetrics:
    """Takes in what became of each unit of one stage; a context manager that leaves the log complete at its end.

    Args:
        title: the stage.
        total: its units; `done` of them were committed before this run.
        port: of the Prometheus endpoint; 0 takes a free one (see `self.port`), None starts none.
        folders: source → the folder whose `logs/` takes its rows; a source without one is counted only.

    Raises:
        RunError: on entering, when the port cannot be had.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        done: int,
        workers: int,
        port: int | None,
        folders: Mapping[str, StageDir] | None = None,
    ) -> None:
        self.title, self.total, self.resumed, self.workers = title, total, done, workers
        self.units = self.tries_lost = 0
        self.cpu_s = 0.0
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.started = time.time()
        self._clock = self._published = time.monotonic()
        run = f"run-{int(self.started * 1000)}-{uuid.uuid4().hex[:8]}"
        self._logs = {source: _PartedLog(folder, run) for source, folder in (folders or {}).items()}
        self._endpoint = Endpoint(title, workers, port) if port is not None else None

    def __enter__(self) -> StageMetrics:
        if self._endpoint is not None:
            self._endpoint.start()
            self._endpoint.remaining(self.total - self.resumed, self.eta_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            ending = {"kind": "run", **self.row(), "ended": kind.__name__ if kind is not None else "well"}
            for one in self._logs.values():
                one.add(ending)
                one.close()
        finally:
            if self._endpoint is not None:
                self._endpoint.stop()

    @property
    def port(self) -> int | None:
        """The port the endpoint listens on, or None."""
        return self._endpoint.port if self._endpoint is not None else None

    @property
    def wall_s(self) -> float:
        return max(time.monotonic() - self._clock, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds still to go at the rate so far; None before the first unit."""
        return (self.total - self.resumed - self.units) * self.wall_s / self.units if self.units else None

    def finished(self, unit: str, source: str, finished: Finished, *, try_number: int = 1) -> None:
        """Take in a committed unit."""
        row = unit_row(self.title, unit, source, finished, try_number)
        self.units += 1
        self.cpu_s += finished.cpu_s
        self.seconds.update(row["phases_s"])
        self.counts.update({f"rows_{state}": row[f"rows_{state}"] for state in ("in", "kept", "dropped", "failed")})
        self.traffic.update({name: row[name] for name in TRAFFIC})
        self.notes.update(row.get("notes", {}))
        if self._endpoint is not None:
            self._endpoint.count(source, row)
            self._endpoint.remaining(self.total - self.resumed - self.units, self.eta_s)
        self._note(source, row)

    def lost(self, unit: str, source: str, why: str, try_number: int) -> None:
        """Take in a try that ended without a commit."""
        self.tries_lost += 1
        if self._endpoint is not None:
            self._endpoint.count_lost(source)
        row = {"kind": "lost", "stage": self.title, "source": source, "unit": unit, "try": try_number}
        self._note(source, {**row, "at": round(time.time(), 3), "why": why})

    def row(self) -> dict[str, Any]:
        """Return the figures of the run so far."""
        return {
            "stage": self.title,
            "started": round(self.started, 3),
            "wall_s": round(self.wall_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "workers": self.workers,
            "units": self.units,
            "units_total": self.total,
            "units_before": self.resumed,
            "tries_lost": self.tries_lost,
            "phases_s": {name: round(value, 3) for name, value in sorted(self.seconds.items())},
            **{f"rows_{state}": self.counts[f"rows_{state}"] for state in ("in", "kept", "dropped", "failed")},
            **{name: self.traffic[name] for name in TRAFFIC},
            **({"notes": dict(sorted(self.notes.items()))} if self.notes else {}),
        }

    def _note(self, source: str, row: Mapping[str, Any]) -> None:
        if source in self._logs:
            self._logs[source].add(row)
        if time.monotonic() - self._published >= _PUBLISH_EVERY_S:
            for one in self._logs.values():
                one.publish()
            self._published = time.monotonic()


def unit_row(stage: str, unit: str, source: str, finished: Finished, try_number: int) -> dict[str, Any]:
    """Return a committed unit as a row of the log; all times are seconds, `started` since 1970."""
    assert finished.result is not None
    commits = finished.result.commits
    counts = commits[0].counts if commits else None
    return {
        "kind": "unit",
        "stage": stage,
        "source": source,
        "unit": unit,
        "try": try_number,
        "worker": finished.worker,
        "started": round(finished.started, 3),
        "wall_s": round(finished.wall_s, 4),
        "cpu_s": round(finished.cpu_s, 4),
        "phases_s": {name: round(value, 4) for name, value in sorted(finished.result.seconds.items())},
        "rows_in": counts.rows_in if counts else 0,
        "rows_kept": counts.kept if counts else 0,
        "rows_dropped": sum(counts.dropped.values()) if counts else 0,
        "rows_failed": sum(counts.failed.values()) if counts else 0,
        "bytes_out": sum(entry.bytes for commit in commits for entry in commit.files),
        **{name: int(finished.traffic.get(name, 0)) for name in TRAFFIC},
        **({"notes": dict(sorted(finished.result.notes.items()))} if finished.result.notes else {}),
    }


class _PartedLog:
    """Rows of one folder: the open part in a temporary file, published whole, closed when it is large."""

    def __init__(self, folder: StageDir, run: str) -> None:
        self._folder, self._run = folder, run
        self._part = 0
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="tokenmill-log-")  # noqa: SIM115 - lives as long as the run
        self._is_published = True

    def add(self, row: Mapping[str, Any]) -> None:
        self._spool.write((json.dumps(row) + "\n").encode())
        self._is_published = False
        if self._spool.tell() >= _PART_BYTES:
            self.publish()
            self._spool.seek(0)
            self._spool.truncate()
            self._part += 1

    def publish(self) -> None:
        """Write the open part to the store, over what was there of it."""
        if self._is_published:
            return
        self._spool.seek(0)
        name = self._folder.at(f"logs/{self._run}-{self._part:04d}.jsonl")
        try:
            self._folder.store.put(name, self._spool.read())
            self._is_published = True
        except StorageError as error:
            log.warning("the log of this run could not be written: %s", error)

    def close(self) -> None:
        try:
            self.publish()
        finally:
            self._spool.close()
