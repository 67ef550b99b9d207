"""How an id is drawn from what a model says: the settings that every way of generating shares.

Values that make no sense are refused where they are said, before a model is opened: a temperature of -1 would cost
minutes of drawing otherwise, and give noise that looks like a bad model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenmill.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Temperature first, then the `top_k` likeliest, of these the nucleus `top_p` (EMU3.md §6 for the defaults).

    Attributes:
        top_k: how many of the likeliest ids are drawn from; 0: all.
        top_p: the smallest set of the likeliest whose probabilities reach this, at least one id; 1: all.
        temperature: 0 takes the likeliest.
        guidance: how far away from the unconditional or negative prompt; 1 is off and half the work.

    Raises:
        RecipeError: a value out of its range.
    """

    top_k: int = 2048
    top_p: float = 1.0
    temperature: float = 1.0
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise RecipeError(f"top_k is {self.top_k}; it counts ids, and 0 means all")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p is {self.top_p}; it is a probability above 0, and 1 means all ids")
        if not 0 <= self.temperature < math.inf:
            raise RecipeError(f"temperature is {self.temperature}; it must be a number from 0 on")
        if not math.isfinite(self.guidance):
            raise RecipeError(f"guidance is {self.guidance}; it must be a number, and 1 turns it off")
