"""The words of a text, in any script, without what spelling may change: what MinHash and word lists count in."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.character_classes import ranges_of
from tokenmill.words import UNSPACED, UNSPACED_RANGES


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
