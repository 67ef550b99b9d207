"""Draws that hang on the seed and the sample alone: the same on every machine, whatever runs beside them.

Each is a SHA-256 over what is drawn, for whom and with which seed, so that draws for different ends are independent.
A draw costs about 1 µs.
"""

from __future__ import annotations

import hashlib
import math

_BITS = 52  # with the half that keeps it from 0, what a float holds exactly


def drawn_bits(purpose: str, seed: int, key: str, bits: int = 64) -> int:
    """Return a uniform integer in [0, 2**bits); `purpose` is a text of ours without line breaks, `bits` at most 64."""
    named = f"{purpose}\n{seed}\n{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big") >> (64 - bits)


def drawn_fraction(purpose: str, seed: int, key: str) -> float:
    """Return a uniform number in (0, 1), neither end ever."""
    return math.ldexp(drawn_bits(purpose, seed, key, _BITS) + 0.5, -_BITS)
