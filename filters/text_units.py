"""The words of a text, in any script: what repetition, MinHash and word lists count in.

Where a script puts no spaces between words (Han, kana, Thai, Lao, Burmese, Khmer) every character is a unit of its own.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from tokenmill.filters.character_classes import UNSPACED, ranges_of

_SPACED_UNITS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def units_of(text: str) -> list[str]:
    """Split a text at white space, and between the characters of scripts without it; punctuation stays."""
    return text.split() if text.isascii() else _SPACED_UNITS.findall(text)


def plain_units(text: str) -> list[str]:
    """Split a text into units that spelling does not change: NFKC, lower case, without punctuation and symbols."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return _ascii_words().findall(folded) if folded.isascii() else _plain_pattern().findall(folded)


@cache
def _ascii_words() -> re.Pattern[str]:
    return re.compile(r"[a-z0-9]+")


@cache
def _plain_pattern() -> re.Pattern[str]:
    outside = ranges_of("PSZC")
    return re.compile(f"[{UNSPACED}]|[^{outside}{UNSPACED}]+")
