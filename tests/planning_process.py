"""What a planning process of a test imports: compiled code is loaded, which takes two seconds, before it is forked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenmill.pipelines.plan_kernels  # noqa: F401
from tokenmill.pipelines.jobs import Job
from tokenmill.pipelines.packing import pack
from tokenmill.pipelines.plan import PlanWorker
from tokenmill.settings_train import PlanSettings

pack([5, 3, 2], [True, False, True], 64, 2)  # no Arrow: its threads would not survive the fork


def plan_one(settings: PlanSettings, vocabulary: Mapping[str, Any], job: Job) -> None:
    """Plan one window in a process that has planned none of the others, or some."""
    PlanWorker(settings, vocabulary)(job)
