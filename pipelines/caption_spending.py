"""What a unit's answers cost, and when a run of bad ones ends the run.

The totals of a folder's newest records add up to everything that was ever paid there: an answer is counted by the one
record that takes it in first, from then on it is part of what the next attempt carries on.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import RunError
from tokenmill.settings_caption import Prices

log = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
UNANSWERED = "unanswered"  # of the unit's questions; the other totals are sums over answers


def totals_with(
    before: Mapping[str, int], new: Iterable[Mapping[str, Any]], prices: Prices, unanswered: int
) -> dict[str, int]:
    """Add new answers (rows as in the journal) to what the attempt before counted; money at today's prices."""
    sums: Counter[str] = Counter({name: number for name, number in before.items() if name != UNANSWERED})
    spent: Counter[str] = Counter()
    for row in new:
        spent.update({name: row[name] for name in ("requests", "input_tokens", "output_tokens", "asking_ms")})
        spent["questions"] += 1
        sums.update({f"retried.{why}": times for why, times in json.loads(row["retried"]).items()})
    cost = spent["input_tokens"] * prices.input_per_million + spent["output_tokens"] * prices.output_per_million
    sums.update({**spent, "cost_millionths": round(cost)})
    names = ("questions", "requests", "input_tokens", "output_tokens", "cost_millionths", "asking_ms")
    return dict(sorted({**dict.fromkeys(names, 0), **sums, UNANSWERED: unanswered}.items()))


@dataclass
class FailureBudget:
    """Counts answers that are none, or not good, in a row: in the order in which they came.

    In a retry a bad text counts as an answer: every question is one that had a bad one before.
    """

    title: str
    allowed: int
    is_retry: bool
    _in_a_row: int = 0
    _last: str = ""

    def take_in(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count some answers that are safe by now.

        Raises:
            RunError: too many in a row; says what to do.
        """
        for row in rows:
            failed = row["fail_reason"] is not None and not (self.is_retry and row["texts"] is not None)
            self._in_a_row = self._in_a_row + 1 if failed else 0
            if failed:
                self._last = f"{row['fail_reason']}: {row['fail_message']}"
            if self._in_a_row > self.allowed:
                raise RunError(
                    f"{self.title}: {self._in_a_row} questions in a row got no good answer, the last with "
                    f'"{self._last}"; what was answered is kept; look at prompt, checks and engine of the column, or '
                    "raise execution.failure_budget, and run it again"
                )


@dataclass
class AskingProgress:
    """Tells how asking goes, every 30 s: a unit may take hours."""

    title: str
    total: int
    _started: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)
    _answered: int = 0
    _output_tokens: int = 0

    def since_last_ms(self) -> int:
        """Return how long ago the last answers came, or the asking began."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        return round(passed * 1e3)

    def take_in(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count some answers."""
        self._answered += len(rows)
        self._output_tokens += sum(row["output_tokens"] for row in rows)
        if time.monotonic() - self._told < _LINE_EVERY_S:
            return
        self._told = time.monotonic()
        seconds = self._told - self._started
        log.info(
            "%s: %d answered in this unit (%d samples), %.1f answers/s, %.0f tokens/s",
            self.title, self._answered, self.total, self._answered / seconds, self._output_tokens / seconds,
        )  # fmt: skip
