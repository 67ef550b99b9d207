"""Answers that go round in circles: the commonest way for a model at temperature 0 to spoil a caption.

Two signs. The text *ends* in the same characters over and over, digits apart: three times and 90 characters, or four
times and 24. Or more than half of it lies in runs of six units (words; characters where a script has no spaces) that
came before, so a loop that was left again is found too. True captions of 100 words have a share of 0, lists of like
sentences .2. A caption of 100 words takes 30 µs; of a longer text than 16,000 characters the end is read.
"""

from __future__ import annotations

import re

from tokenmill.words import units_of

READ_CHARS = 16_000
_RUN_UNITS = 6
_LEAST_RUNS = 16  # of fewer a share says nothing
_PROBE_CHARS, _PROBES = 12, 32
_DIGITS = re.compile(r"\d+")


def is_loop(text: str, max_repeated: float = 0.5) -> bool:
    """Tell whether a text ends in a loop, or whether more than a share of it was said before."""
    plain = _DIGITS.sub("0", " ".join(text[-READ_CHARS:].lower().split()))
    return ends_in_loop(plain) or repeated_share(plain) > max_repeated


def ends_in_loop(text: str) -> bool:
    """Tell whether the end of a text is some characters again and again.

    What ends in a loop of period p has its last characters p before its end too, so those places are all periods there
    can be, and a comparison of strings says whether they are.
    """
    probe = text[-_PROBE_CHARS:]
    if len(probe) < _PROBE_CHARS:
        return False
    place = len(text) - _PROBE_CHARS
    for _ in range(_PROBES):
        place = text.rfind(probe, 0, place + _PROBE_CHARS - 1)
        if place < 0:
            return False
        period = len(text) - _PROBE_CHARS - place
        times = max(3, -(-90 // period)) if period >= 23 else max(4, -(-24 // period))
        if text.endswith(text[-period:] * times):
            return True
    return False


def repeated_share(text: str) -> float:
    """Return which share of a text's runs of six units stood there before; 0 for a short text."""
    units = units_of(text)
    runs = len(units) - _RUN_UNITS + 1
    if runs < _LEAST_RUNS:
        return 0.0
    return 1 - len(set(zip(*(units[start:] for start in range(_RUN_UNITS)), strict=False))) / runs
