"""Answers that say the question again, in whole or in part.

Compared are the words of the *templates*: what stands in their fields is the sample's own, and a rewritten caption
rightly shares words with the caption it was made from. Two looks at the words that answer and template share settle
most answers, before any run of words is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tokenmill.captions.prompts import literals
from tokenmill.words import UNSPACED

READ_CHARS = 4_000
_RUN_UNITS = 4
_LEAST_PROMPT_RUNS = 5  # a shorter prompt, "A photo of", is rather a beginning to go on from
_OPENING_UNITS = 8  # an answer that begins with as many of the prompt's first words goes through it
_LEAST_ANSWER_UNITS = 6  # a shorter answer may be one that the prompt offers: "Is it a cat, a dog or a red car?"
_MAX_TAKEN = 0.9  # of an answer, from the template
_UNIT = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_ASCII_UNIT = re.compile(r"[a-z0-9]+")

Run = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a template says: its units in order, the first eight, which there are, and its runs of four."""

    units: Run
    opening: Run
    words: frozenset[str]
    runs: frozenset[Run]


def is_echo(answer: str, templates: Iterable[str], max_echoed: float = 0.6) -> bool:
    """Tell whether an answer begins as a template does, holds most of its runs of four words, or hardly any others."""
    units = _units(answer[:READ_CHARS])
    words = frozenset(units)
    return any(_repeats(units, words, _asked(template), max_echoed) for template in templates)


def _repeats(units: list[str], words: frozenset[str], asked: _Asked, max_echoed: float) -> bool:
    if not asked.runs:
        return False
    if tuple(units) == asked.units or (asked.opening and tuple(units[:_OPENING_UNITS]) == asked.opening):
        return True
    if len(asked.runs) >= _LEAST_PROMPT_RUNS:
        most = max_echoed * len(asked.runs)
        possible = [run for run in asked.runs if run[0] in words and run[-1] in words]
        if len(possible) > most and len(_runs(units).intersection(possible)) > most:
            return True
    if len(units) < _LEAST_ANSWER_UNITS or len(words - asked.words) > _RUN_UNITS * (1 - _MAX_TAKEN) * len(units):
        return False  # each word of its own spoils a run of the answer, and at most four words the same one
    said = _runs(units)
    return len(said & asked.runs) > _MAX_TAKEN * len(said)


@lru_cache(maxsize=256)
def _asked(template: str) -> _Asked:
    pieces = [_units(piece) for piece in literals(template)]
    units = tuple(unit for piece in pieces for unit in piece)
    runs = frozenset[Run]().union(*map(_runs, pieces)) if len(units) > 1 else frozenset[Run]()
    first = tuple(pieces[0][:_OPENING_UNITS]) if pieces and not template.startswith("{") else ()
    return _Asked(units, first if len(first) == _OPENING_UNITS else (), frozenset(units), runs)


def _units(text: str) -> list[str]:
    lower = text.lower()
    return _ASCII_UNIT.findall(lower) if lower.isascii() else _UNIT.findall(lower)


def _runs(units: list[str]) -> frozenset[Run]:
    if len(units) < _RUN_UNITS:
        return frozenset([tuple(units)] if units else ())
    return frozenset(zip(*(units[start:] for start in range(_RUN_UNITS)), strict=False))
