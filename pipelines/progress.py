"""Progress of a stage: a bar on a terminal, a line every 30 s elsewhere, with rate, ETA and what limits it.

The last line holds the run to its aim: on CPUs the work's CPU-seconds shared by the cores, with GPUs the slowest phase
alone, over the workers that do it; 1.1 times that is what the project allows itself.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tokenmill.pipelines.execution import Finished
from tokenmill.pipelines.jobs import JobResult

log = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
AIM = 1.1


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """A run's wall time against the least it could have taken, and how that was reckoned."""

    wall_s: float
    ideal_s: float
    reckoned: str

    @property
    def ratio(self) -> float:
        return self.wall_s / max(self.ideal_s, 1e-9)

    def __str__(self) -> str:
        return f"{self.reckoned} = {self.ideal_s:.1f} s, wall {self.ratio:.2f} x (aim {AIM} x)"


def phase_workers(phase: str, workers: int, decode_workers: int = 0) -> int:
    """Return how many processes do a phase: all `workers`, or as two pools the models, the decoders or the driver."""
    if not decode_workers or phase.startswith("model"):
        return workers
    return 1 if phase == "write" else decode_workers


def efficiency(
    *,
    wall_s: float,
    cpu_s: float,
    phases_s: Mapping[str, float],
    cores: float,
    gpus: float = 0.0,
    workers: int = 1,
    decode_workers: int = 0,
) -> Efficiency:
    """Compare a run with its ideal: CPU-seconds by cores or, where GPUs work, the slowest phase of its workers alone.

    With `decode_workers` the stage is two pools, `workers` being those that hold the models.
    """
    if gpus > 0 and phases_s:
        done_by = {phase: phase_workers(phase, workers, decode_workers) for phase in phases_s}
        phase = max(phases_s, key=lambda name: phases_s[name] / done_by[name])
        return Efficiency(
            wall_s=wall_s,
            ideal_s=phases_s[phase] / done_by[phase],
            reckoned=f"{phase} alone, {phases_s[phase]:.1f} s over {done_by[phase]} workers",
        )
    return Efficiency(wall_s=wall_s, ideal_s=cpu_s / cores, reckoned=f"{cpu_s:.1f} CPU-s over {cores:g} cores")


def _rows_of(result: JobResult) -> int:
    if result.rows is not None:
        return result.rows
    return result.commits[0].counts.rows_in if result.commits else 0


class Progress:
    """Counts finished units and rows, and the seconds each phase took in the workers."""

    def __init__(self, title: str, *, total: int, done: int, quiet: bool = False) -> None:
        self.title, self.total, self.resumed = title, total, done
        self.units = self.rows = 0
        self.seconds: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.cpu_s = 0.0
        self._start = self._last_line = time.perf_counter()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=title, unit="unit", leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, finished: Finished) -> None:
        """Take in one finished unit."""
        assert finished.result is not None
        self.units += 1
        self.rows += _rows_of(finished.result)
        self.seconds.update(finished.result.seconds)
        self.notes.update(finished.result.notes)
        self.cpu_s += finished.cpu_s
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.rows / self.wall_s:,.0f} rows/s, {self.limit()}")
            self._bar.update(1)
        elif time.perf_counter() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.perf_counter()
            log.info("%s", self.line())

    @property
    def wall_s(self) -> float:
        return max(time.perf_counter() - self._start, 1e-9)

    def limit(self) -> str:
        """Name the phase that took most of the workers' time."""
        if not self.seconds:
            return "nothing measured"
        phase, seconds = max(self.seconds.items(), key=lambda item: item[1])
        return f"{phase} {100 * seconds / max(sum(self.seconds.values()), 1e-9):.0f} %"

    def line(self) -> str:
        """Return one line: how far, how fast, how long still."""
        done = self.resumed + self.units
        eta_s = (self.total - done) * self.wall_s / max(self.units, 1)
        return (
            f"{self.title}: {done}/{self.total} units, {self.rows / self.wall_s:,.0f} rows/s, "
            f"ETA {eta_s:,.0f} s, limited by {self.limit()}"
        )

    def last_line(self, cores: float, *, gpus: float = 0.0, workers: int = 1, decode_workers: int = 0) -> str:
        """Return how it went: wall time against its ideal (see `efficiency`), for the cores and GPUs of the pools."""
        how = efficiency(
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
            phases_s=self.seconds,
            cores=cores,
            gpus=gpus,
            workers=workers,
            decode_workers=decode_workers,
        )
        return (
            f"{self.title}: {self.units} units in {self.wall_s:.1f} s, {self.rows / self.wall_s:,.0f} rows/s; "
            f"{how}; limited by {self.limit()}" + "".join(f"; {n:,} {what}" for what, n in sorted(self.notes.items()))
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures of this run as one row."""
        return {
            "wall_s": round(self.wall_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "rows": self.rows,
            "phases_s": {name: round(value, 3) for name, value in sorted(self.seconds.items())},
        }
