"""How many unreadable samples a run bears: single ones, not a whole unreadable store."""

from __future__ import annotations

import logging
import threading

from tokenmill.errors import RunError
from tokenmill.manifests.plan_rows import Placed

log = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAULTS = 100


class FaultBudget:
    """Counts unreadable samples in a row, over all threads."""

    def __init__(self) -> None:
        self._consecutive = 0
        self._lock = threading.Lock()

    def clear(self) -> None:
        if self._consecutive:
            with self._lock:
                self._consecutive = 0

    def add(self, placed: Placed, error: Exception) -> None:
        """Count an unreadable sample; raises RunError after too many in a row."""
        log.warning("%s, sample %d: %s; it keeps its place with weight 0", placed.shard, placed.sample, error)
        with self._lock:
            self._consecutive += 1
            if self._consecutive >= MAX_CONSECUTIVE_FAULTS:
                raise RunError(
                    f"{self._consecutive} samples in a row cannot be read, last of {placed.shard}: {error}"
                ) from error
