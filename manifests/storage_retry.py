"""Trying again, bounded in number and in time, with growing and scattered pauses.

Each request is tried by this loop and not by the library's own, so that retries are counted and a write whose answer
got lost is known as such. Once an operation has waited its whole time in vain, the store counts as gone for this
process and the next operations are tried once: a run of 1,000 units ends after one time-out, not after 1,000.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tokenmill.manifests.storage_entries import count
from tokenmill.manifests.storage_errors import fault_of

T = TypeVar("T")
_LONGEST_PAUSE_S = 5.0


@dataclass(slots=True, kw_only=True)
class Patience:
    """How long to go on with one store; `gone` is set by the operation that waited in vain, cleared by any success."""

    retries: int
    total_s: float
    first_pause_s: float = 0.1
    gone: bool = False

    def __call__(self, verb: str, attempt: Callable[[int], T]) -> T:
        """Call `attempt` with 0, 1, 2 … until it returns; raises its last error, at once if no retry can mend it."""
        started = time.monotonic()
        number = 0
        while True:
            try:
                result = attempt(number)
            except Exception as error:
                pause = pause_s(number, self.first_pause_s, random.random())
                spent = time.monotonic() + pause - started
                if not fault_of(error, verb).mends:
                    raise
                if self.gone or number >= self.retries or spent > self.total_s:
                    self.gone = True
                    raise
                count(0, retries=1)
                time.sleep(pause)
                number += 1
            else:
                self.gone = False
                return result


def pause_s(number: int, first_s: float, chance: float) -> float:
    """Return the pause after a failed try: doubled each time, at most 5 s, between a half and the whole of that."""
    longest = min(first_s * 2.0 ** min(number, 20), _LONGEST_PAUSE_S)
    return longest * (0.5 + 0.5 * chance)
