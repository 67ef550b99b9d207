"""Answers that go round in circles: the commonest way for a model at temperature 0 to spoil a caption.

Two signs. The text *ends* in the same characters over and over: 24 characters or more three times, fewer four times and
24 in all; numbers may differ where there are words between them ("1. a cup 2. a cup"). Or more than half of its runs of
six words (characters where a script has no spaces; not numbers) came before, so a loop that was left again is found
too. True captions of 100 words have a share of 0, a list of like sentences .2. Of a text longer than 16,000 characters
the end is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenmill.words import units_of

READ_CHARS = 16_000
_RUN_UNITS = 6
_LEAST_RUNS = 16  # of fewer a share says nothing
_LONG_PERIOD = 24
_RULES = "-=_+|~ "  # lines, of tables and under headings
_PROBE_CHARS, _PROBES = 12, 32
_DIGITS = re.compile("[0-9]+")


def is_loop(text: str, max_repeated: float = 0.5) -> bool:
    """Tell whether a text ends in a loop, or whether more than a share of it was said before."""
    plain = " ".join(text[-READ_CHARS:].lower().split())
    if ends_in_loop(plain):
        return True
    unnumbered = _DIGITS.sub("0", plain)
    if unnumbered == plain:
        return _says_again(units_of(plain), max_repeated)
    words = [unit for unit in units_of(unnumbered) if "0" not in unit]  # or every table of numbers were a loop
    return ends_in_loop(unnumbered, of_words=True) or _says_again(words, max_repeated)


def ends_in_loop(text: str, *, of_words: bool = False) -> bool:
    """Tell whether the end of a text is some characters again and again, among them letters if `of_words`.

    What ends in a loop of period p has its last characters p before its end too, so those places are all periods there
    can be, and a comparison of strings says whether they are.
    """
    text = text.rstrip(_RULES)
    probe = text[-_PROBE_CHARS:]
    if len(probe) < _PROBE_CHARS:
        return False
    place = len(text) - _PROBE_CHARS
    for _ in range(_PROBES):
        place = text.rfind(probe, 0, place + _PROBE_CHARS - 1)
        if place < 0:
            return False
        period = len(text) - _PROBE_CHARS - place
        times = 3 if period >= _LONG_PERIOD else max(4, -(-_LONG_PERIOD // period))
        unit = text[-period:]
        if text.endswith(unit * times) and not (of_words and not any(map(str.isalpha, unit))):
            return True
    return False


def repeated_share(units: Sequence[str]) -> float:
    """Return which share of a text's runs of six units stood there before; 0 for a short text."""
    runs = len(units) - _RUN_UNITS + 1
    if runs < _LEAST_RUNS:
        return 0.0
    return 1 - len(set(zip(*(units[start:] for start in range(_RUN_UNITS)), strict=False))) / runs


def _says_again(units: Sequence[str], max_repeated: float) -> bool:
    """Compare the share with its limit; a text of many different units can't reach it: each is in a run of its own."""
    most_runs = (1 - max_repeated) * (len(units) - _RUN_UNITS + 1)
    return len(set(units)) <= most_runs + _RUN_UNITS - 1 and repeated_share(units) > max_repeated
