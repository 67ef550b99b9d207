"""Unicode's form C in linear time, whatever a text holds.

Python puts combining marks in order by insertion, so a hostile run of 40,000 marks of two classes takes 2 seconds and
one of a million 20 minutes. Long runs are sorted here first; the result is the same, because that order is a stable
sort of each run.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_LONG = 32
_LAST_MARK = 0x1F000  # beyond lie no combining marks


def nfc(text: str) -> str:
    """Return the text in form C (composed)."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):  # linear: marks out of order end it at once
        return text
    return unicodedata.normalize("NFC", _long_runs().sub(_in_order, text))


def _in_order(run: re.Match[str]) -> str:
    marks = [mark for one in run[0] for mark in unicodedata.normalize("NFD", one)]
    return "".join(sorted(marks, key=unicodedata.combining))


@lru_cache(maxsize=1)
def _long_runs() -> re.Pattern[str]:
    """Runs of characters that are nothing but marks when taken apart."""
    marks = [chr(point) for point in range(0x300, _LAST_MARK) if _is_mark(chr(point))]
    return re.compile(f"[{''.join(marks)}]{{{_LONG},}}")


def _is_mark(one: str) -> bool:
    return all(unicodedata.combining(part) for part in unicodedata.normalize("NFD", one))
