"""The words of a text, in any script: what repetition, MinHash and word lists count in.

Where a script puts no spaces between words (Han, kana, Thai, Lao, Burmese, Khmer) every character is a unit of its own.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.character_classes import UNSPACED_RANGES, ranges_of

UNSPACED = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in UNSPACED_RANGES)
_SPACED_UNITS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def units_of(text: str) -> list[str]:
    """Split a text at white space, and between the characters of scripts without it; punctuation stays."""
    return text.split() if text.isascii() else _SPACED_UNITS.findall(text)


def plain_units(text: str) -> list[str]:
    """Split a text into units that spelling does not change: NFKC, lower case, without punctuation and symbols."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return _ascii_words().findall(folded) if folded.isascii() else _plain_pattern().findall(folded)


def is_unspaced(codes: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Tell of code points whether they belong to a script without spaces."""
    inside = np.zeros(len(codes), dtype=bool)
    for first, last in UNSPACED_RANGES:
        inside |= (codes >= first) & (codes <= last)
    return inside


@cache
def _ascii_words() -> re.Pattern[str]:
    return re.compile(r"[a-z0-9]+")


@cache
def _plain_pattern() -> re.Pattern[str]:
    outside = ranges_of("PSZC")
    return re.compile(f"[{UNSPACED}]|[^{outside}{UNSPACED}]+")
