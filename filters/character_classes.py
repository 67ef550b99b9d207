"""What kind each character of a text is, by one look into a table: 1 MB of text takes 5 ms, a loop in Python 100.

The table holds Unicode's general categories as this Python knows them, so scorers that use it put `UNICODE` into their
fingerprint.
"""

from __future__ import annotations

import sys
import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

UNICODE = f"Unicode {unicodedata.unidata_version}"

CATEGORIES = (
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
    "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn",
)  # fmt: skip
SPACE = len(CATEGORIES)
"""The class of white space, which `str.isspace` decides: control characters such as the line feed are among it."""


def classes_of(text: str) -> NDArray[np.uint8]:
    """Return the class of every character: its place in `CATEGORIES`, or `SPACE`."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    classes: NDArray[np.uint8] = class_table()[codes]
    return classes


def counts_of(text: str) -> NDArray[np.intp]:
    """Count a text's characters by class."""
    return np.bincount(classes_of(text), minlength=SPACE + 1)


def ranges_of(major: str) -> str:
    """Return the characters whose category begins with one of the letters in `major`, as ranges of a pattern."""
    wanted = [place for place, category in enumerate(CATEGORIES) if category[0] in major]
    inside = np.isin(class_table(), [*wanted, *([SPACE] if "Z" in major else [])])
    edges = np.flatnonzero(np.diff(np.concatenate(([0], inside.astype(np.int8), [0]))))
    return "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in zip(edges[::2], edges[1::2], strict=True))


@cache
def class_table() -> NDArray[np.uint8]:
    """Return the class of every code point (1,114,112)."""
    place = {category: number for number, category in enumerate(CATEGORIES)}
    every = map(chr, range(sys.maxunicode + 1))
    return np.fromiter(
        (SPACE if char.isspace() else place[unicodedata.category(char)] for char in every), np.uint8, sys.maxunicode + 1
    )
