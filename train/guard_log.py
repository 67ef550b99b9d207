"""`guard.jsonl`: every step that was refused, and every return to a checkpoint.

Published whole at once and each time, so it is there before a run goes back: killed meanwhile, it leaves out the same
steps. A resumed run cuts refusals back to where it stands, since it repeats them; returns stay.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from tokenmill.faults import fault_point
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.guard import Guard, Verdict

log = logging.getLogger(__name__)

_NAME = "guard.jsonl"


class GuardLog:
    """A run's log of its guard; every rank reads it, rank 0 writes."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._rows = _read(folder)

    def begin(self, guard: Guard, step: int) -> None:
        """Cut back to the step a run goes on from, and tell the guard which steps are left out."""
        kept = [row for row in self._rows if row["step"] <= step or row["action"] == "roll_back"]
        for row in kept:
            if row["action"] == "roll_back":
                guard.leave_out(*row["left_out"])
        if kept != self._rows:
            self._rows = kept
            self._publish()

    def add(self, row: Mapping[str, Any], verdict: Verdict, **more: Any) -> None:
        """Note what was done about the step with these metrics."""
        if self._rank == 0:
            log.warning("step %d is refused (%s): %s", row["step"], verdict.action, verdict.reason)
        figures = {name: row[name] if _is_finite(row[name]) else None for name in ("loss", "grad_norm", "lr")}
        self._rows.append({"step": row["step"], "action": verdict.action, "reason": verdict.reason, **figures, **more})
        self._publish()
        fault_point("guard:noted")

    def refused_before(self, step: int) -> int:
        """Count the steps directly before one that were refused too."""
        refused = {row["step"] for row in self._rows}
        return next(count for count in range(len(refused) + 1) if step - 1 - count not in refused)

    def returns_to(self, step: int) -> int:
        """Count the returns to a checkpoint."""
        return sum(row.get("to") == step for row in self._rows)

    def _publish(self) -> None:
        if self._rank == 0:
            text = "".join(json.dumps(row) + "\n" for row in self._rows)
            self._folder.store.put(self._folder.at(_NAME), text.encode())


def _read(folder: RunFolder) -> list[dict[str, Any]]:
    name = folder.at(_NAME)
    if not folder.store.exists(name):
        return []
    return [json.loads(line) for line in folder.store.read_bytes(name).splitlines()]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
