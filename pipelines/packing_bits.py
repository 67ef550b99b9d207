"""Sets of small whole numbers, compiled: which is the smallest one that is no smaller than this?

A set is a tree of words of 32 bits in int64, shape (levels, words): bit i of the lowest level is the number i, a bit
above says that the word below it is not empty. Four levels hold a million numbers; a call looks at eight words at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled

Bits = NDArray[np.int64]

_SEQUENCE = 0x077CB531  # de Bruijn's: its 32 windows of 5 bits all differ, so they tell which bit was set
_BIT_OF_WINDOW = np.array([0, 1, 28, 2, 29, 14, 24, 3, 30, 22, 20, 15, 25, 17, 4, 8,
                           31, 27, 13, 23, 21, 19, 16, 7, 26, 12, 18, 6, 11, 5, 10, 9])  # fmt: skip


def empty_bits(end: int) -> Bits:
    """Make an empty set of numbers in [0, end)."""
    levels, words = 1, -(-end // 32)
    while words > 1:
        levels, words = levels + 1, -(-words // 32)
    return np.zeros((levels, -(-end // 32)), np.int64)


@compiled
def _lowest(word: int) -> int:
    return int(_BIT_OF_WINDOW[(((word & -word) * _SEQUENCE) & 0xFFFFFFFF) >> 27])


@compiled
def set_bit(bits: Bits, number: int) -> None:
    for level in range(bits.shape[0]):
        bits[level, number >> 5] |= 1 << (number & 31)
        number >>= 5


@compiled
def clear_bit(bits: Bits, number: int) -> None:
    for level in range(bits.shape[0]):
        bits[level, number >> 5] &= ~(1 << (number & 31))
        if bits[level, number >> 5]:
            return
        number >>= 5


@compiled
def first_from(bits: Bits, number: int) -> int:
    """Return the smallest number of the set that is at least `number`, -1 if there is none."""
    for level in range(bits.shape[0]):
        place = number >> 5
        if place >= bits.shape[1]:
            return -1
        above = bits[level, place] >> (number & 31)
        if above:
            found = number + _lowest(above)
            for lower in range(level - 1, -1, -1):
                found = (found << 5) + _lowest(bits[lower, found])
            return found
        number = place + 1
    return -1
