"""How training goes, told while it goes: a bar on a terminal, a line every 30 s elsewhere.

A line sums up all steps since the one before, so it says what the run does and not what one step did.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0

Row = Mapping[str, Any]


@dataclass(slots=True)
class StepSums:
    """Rows of metrics, added up; `last` is the newest."""

    seconds: float = 0.0
    waited_s: float = 0.0
    tokens: int = 0
    used: float = 0.0  # seconds · share of the devices' peak
    memory_gib: float = 0.0
    last: Row = field(default_factory=dict)

    def add(self, row: Row) -> None:
        seconds = row.get("step_s", 0.0)
        self.seconds += seconds
        self.waited_s += row.get("data_wait_s", 0.0)
        self.tokens += row.get("tokens", 0)
        self.used += row.get("mfu", 0.0) * seconds
        self.memory_gib = max(self.memory_gib, row.get("memory_gib", 0.0))
        self.last = row

    def to_json(self) -> dict[str, Any]:
        """Give what these steps cost in all, and how the last went; shares are of 1, absent is what nobody measured."""
        if not self.last:
            return {}
        told = {
            name: self.last[name] for name in ("loss", "loss_text", "loss_vision") if self.last.get(name) is not None
        }
        if self.seconds > 0:
            told |= {"tokens_per_s": self.tokens / self.seconds, "data_wait": self.waited_s / self.seconds}
            told |= {"mfu": self.used / self.seconds} if self.used else {}
        return told | {"memory_gib": self.memory_gib}


class TrainingProgress:
    """Takes rows of metrics as they come, on the machine that started the ranks.

    Args:
        total: steps of the whole run, if known.
        tells: makes the words behind the step from the rows since the last line.
        quiet: no bar, for callers that print something a program reads.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        tells: Callable[[StepSums], str],
        *,
        quiet: bool = False,
        every_s: float = LINE_EVERY_S,
    ) -> None:
        self.launch = StepSums()
        self._title, self._total, self._tells, self._every_s = title, total, tells, every_s
        self._since = StepSums()
        self._told = time.monotonic()
        self._wants_bar = not quiet and sys.stderr.isatty()
        self._bar: Any = None

    def __call__(self, row: Row) -> None:
        self.launch.add(row)
        self._since.add(row)
        is_due = time.monotonic() - self._told >= self._every_s
        if self._wants_bar:
            self._show(int(row["step"]))
        elif is_due:
            log.info("%s: step %s  %s", self._title, self._place(int(row["step"])), self._tells(self._since))
        if is_due:
            self._told, self._since = time.monotonic(), StepSums()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, step: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=step - 1, desc=self._title, unit="step", leave=False)
        self._bar.set_postfix_str(self._tells(self._since), refresh=False)
        self._bar.update(step - self._bar.n)
        self._bar.refresh()

    def _place(self, step: int) -> str:
        return f"{step:,}" if self._total is None else f"{step:,}/{self._total:,}"


def tell_steps(steps: StepSums) -> str:
    """Tell loss by modality, speed, use of the device, waiting, memory and the time that is left."""
    found = steps.to_json()
    columns = {"text": "loss_text", "vision": "loss_vision"}
    by_modality = ", ".join(f"{name} {found[column]:.4f}" for name, column in columns.items() if column in found)
    loss = f"{found['loss']:.4f}" if "loss" in found else "–"  # of a step that the guard refused or left out
    parts = [f"loss {loss}" + (f" ({by_modality})" if by_modality else "")]
    if "tokens_per_s" in found:
        parts.append(f"{found['tokens_per_s']:,.0f} ids/s")
    if "mfu" in found:
        parts.append(f"MFU {found['mfu']:.2f}")
    if "data_wait" in found:
        parts.append(f"data wait {100 * found['data_wait']:.1f} %")
    parts.append(f"{found['memory_gib']:.1f} GiB")
    if steps.last.get("eta_s") is not None:
        parts.append(f"ETA {duration(steps.last['eta_s'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Tell a time in the two largest units that it has: `2 d 3 h`, `4 min 10 s`."""
    left = round(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    first = next((place for place, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    told = []
    for name, size in units[first : first + 2]:
        told.append(f"{left // size} {name}")
        left %= size
    return " ".join(told)
