"""The words of a text, in any script: what repetition, and the checks of captions, count in.

Where a script puts no spaces between words (Han, kana, Thai, Lao, Burmese, Khmer) every character is a unit of its own.
"""

from __future__ import annotations

import re

UNSPACED_RANGES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F), (0x31A0, 0x31BF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)  # fmt: skip
"""Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, bopomofo, Han, Yi."""

UNSPACED = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in UNSPACED_RANGES)
_SPACED_UNITS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def units_of(text: str) -> list[str]:
    """Split a text at white space, and between the characters of scripts without it; punctuation stays."""
    return text.split() if text.isascii() else _SPACED_UNITS.findall(text)
