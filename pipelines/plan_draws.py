"""Random numbers of planning: pure functions of names, so that windows can be planned anywhere in any order.

What concerns one sample whatever plan is made (whether it is held out) is a hash of its key. What is drawn anew in each
pass over a shard (whether it is taken, under which template, which caption) comes from one counter-based stream a pass,
by the sample's row: 5 ns a number where a hash of strings takes 1,000. A stream hangs on the seed, the shard and the
repetition alone, so a plan that takes a larger part of a source takes all of the smaller part.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniform(*parts: str) -> float:
    """Give a number in [0, 1) that is a pure function of some strings."""
    return int.from_bytes(_digest(parts)[:7], "big") / 2**56


def uniforms(count: int, *parts: str) -> NDArray[np.float64]:
    """Give `count` numbers in [0, 1) that are a pure function of some strings; a larger count only adds."""
    key = int.from_bytes(_digest(parts)[:16], "big")
    raw = np.random.Philox(key=key).random_raw(count)  # numpy keeps raw streams the same for good
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _digest(parts: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
