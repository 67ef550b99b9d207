"""The guard of losses: which steps are refused, and what is done then.

It judges by sums that every rank has, so all come to the same, and it hangs on nothing but losses in their order: a run
that resumes with its state repeats itself. A refused step is not taken at all: weights, moments and Adam's count of
steps stay bit for bit what they were (`engine.discarding`), and only the learning rate's schedule goes on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from tokenmill.settings_keeping import Action, GuardSettings


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a step is refused, and what the recipe wants done."""

    reason: str
    action: Action


class Guard:
    """Judges the steps of a run.

    `discarded` is how many steps were refused or left out until now, so that Adam has taken so many fewer.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.spike.window if settings.spike else 1)
        self._left_out: set[tuple[int, int]] = set()
        self.discarded = 0

    def judge(self, loss: float, norm: float | None = None) -> Verdict | None:
        """Say what is wrong with a step that is about to be taken; None if nothing is. `norm` is its gradient's."""
        if not math.isfinite(loss):
            return Verdict(f"the loss is {loss}", self._settings.on_nan)
        if norm is not None and not math.isfinite(norm):
            return self.judge_gradient(norm)
        spike = self._settings.spike
        if spike is None or len(self._losses) < spike.window:
            return None
        usual = median(self._losses)
        if loss <= spike.factor * usual:
            return None
        told = f"the loss {loss:.4g} is above {spike.factor:g} × {usual:.4g}, the median of {spike.window} steps"
        return Verdict(told, self._settings.on_spike)

    def judge_gradient(self, norm: float | None) -> Verdict:
        """Say what is done about a gradient that is no finite number."""
        return Verdict(f"the gradient's norm is {norm}", self._settings.on_nan)

    def took(self, loss: float) -> None:
        """Note a step that was taken."""
        self._losses.append(loss)

    def first_left_out(self, bad: int, checkpoint: int) -> int:
        """Return the first step (from 1) that is left out after a roll back from a bad one to a checkpoint."""
        most = self._settings.leave_out
        return checkpoint + 1 if most is None else max(checkpoint + 1, bad - most + 1)

    def leave_out(self, first: int, last: int) -> None:
        """Leave the steps from first to last (from 1) out from now on."""
        self._left_out.add((first, last))

    def leaves_out(self, step: int) -> bool:
        """Say whether a step (from 1) is left out."""
        return any(first <= step <= last for first, last in self._left_out)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "losses": list(self._losses),
            "left_out": sorted(map(list, self._left_out)),
            "discarded": self.discarded,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state, which may be empty; steps that are left out stay so."""
        self._losses.clear()
        self._losses.extend(state.get("losses", ()))
        self._left_out |= {(first, last) for first, last in state.get("left_out", ())}
        self.discarded = state.get("discarded", 0)
