"""One run of tokenmill's trainer, started as `tokenmill train` starts it, and what its rows of metrics tell.

Time is taken on the wall from the row of the last warm-up step to that of the last step (rows are looked for every
tenth of a second), so what a step leaves behind it, logs and all, counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tokenmill.manifests.plans import Plan
from tokenmill.settings_train import TrainSettings
from tokenmill.train.job import TrainJob
from tokenmill.train.launch import launch

QUIET: Mapping[str, Any] = {"schedule": "constant", "warmup_steps": 0, "checkpoint_every": 10**9}


class _Rows:
    """Rows of metrics and when they came."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.came: list[float] = []

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.came.append(time.perf_counter())


def run(plan: Plan, settings: Mapping[str, Any], warm_up_steps: int) -> dict[str, Any]:
    """Train for `settings.steps`; returns what the steps after the first came to."""
    told = _Rows()
    job = TrainJob(root=plan.folder.store.url, plan=plan.folder.path,
                   settings=TrainSettings.model_validate({**QUIET, **settings}))  # fmt: skip
    launch(job, on_row=told)
    measured = told.rows[warm_up_steps:]
    return {
        "seconds": told.came[-1] - told.came[warm_up_steps - 1],
        "step_s": median(row["step_s"] for row in measured),
        "supervised": round(_sum(measured, "weight")),
        "ids": _sum(measured, "tokens"),
        "data_wait_share": _sum(measured, "data_wait_s") / _sum(measured, "step_s"),
        "memory_gib": max(row["memory_gib"] for row in measured),
        "losses": [row["loss"] for row in told.rows],
    }


def _sum(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    return sum(row[name] for row in rows)
