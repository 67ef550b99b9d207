"""What a planning process of a test imports: what takes seconds to load is there before it is forked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

import tokenmill.pipelines.plan_kernels  # noqa: F401
from tokenmill.pipelines.jobs import Job
from tokenmill.pipelines.packing import pack
from tokenmill.pipelines.plan import PlanWorker
from tokenmill.settings_train import PlanSettings

pack([5, 3, 2], [True, False, True], 64, 2)
pa.array([1])  # imports pandas; nothing that starts Arrow's threads, which would not survive the fork


def plan_one(settings: PlanSettings, vocabulary: Mapping[str, Any], job: Job) -> None:
    """Plan one window in a process that has planned none of the others, or some."""
    PlanWorker(settings, vocabulary)(job)
