"""Which bits two near hashes must share: the pigeonhole, with bands chosen for the hashes at hand.

Put the bits into d + r bands: d differing bits touch at most d of them, so two hashes within d bits agree on at least r
whole bands. A table for every choice of r bands therefore finds every pair. r balances the number of tables against the
size of their buckets (d = 4: 5 tables of 13 bits, 15 of 21, 35 of 27). Bits that tell little apart are dealt out evenly
(perceptual hashes of flat pictures); bits that are the same everywhere are left out, which the pigeonhole allows.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BITS = 64
_SAMPLE = 16_384
_MOST_SHARED = 4
# Nanoseconds, measured: a row of a table, a candidate in a bucket, a comparison in a straight loop.
_ROW_NS, _CANDIDATE_NS, _STRAIGHT_NS = 15.0, 0.7, 0.35


class Bits(NamedTuple):
    """Bits of a hash that tell hashes apart, the most telling first, and how much they tell together (in bits)."""

    places: tuple[int, ...]
    entropy: float


def telling_bits(hashes: Hashes, among: int = (1 << BITS) - 1) -> Bits:
    """Measure on a sample of hashes which of the bits in the mask `among` tell them apart."""
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)]
    ones = np.array([np.count_nonzero(sample & np.uint64(1 << bit)) for bit in range(BITS)]) / max(1, len(sample))
    share = np.clip(ones, 1e-12, 1 - 1e-12)
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    places = [bit for bit in np.argsort(-entropy, kind="stable").tolist() if among >> bit & 1 and 0 < ones[bit] < 1]
    return Bits(tuple(places), float(entropy[places].sum()))


def choose_masks(bits: Bits, max_distance: int, num_kept: int, num_queries: int) -> tuple[int, ...]:
    """Return the masks of tables that find every near pair with the least work; none where comparing all is less."""
    work = {0: _STRAIGHT_NS * num_kept * num_queries}
    for shared in range(1, _MOST_SHARED + 1):
        bands = max_distance + shared
        if bands <= len(bits.places):
            in_bucket = num_kept / 2 ** (bits.entropy * shared / bands)
            row = _ROW_NS * (num_kept + num_queries) + _CANDIDATE_NS * num_queries * in_bucket
            work[shared] = math.comb(bands, shared) * row
    shared = min(work, key=lambda choice: work[choice])
    return masks(bits.places, max_distance, shared) if shared else ()


@lru_cache(maxsize=256)
def masks(places: tuple[int, ...], max_distance: int, shared: int) -> tuple[int, ...]:
    """Return what each choice of `shared` out of `max_distance + shared` bands covers, bits dealt out by turns."""
    num_bands = max_distance + shared
    bands = [sum(1 << bit for bit in places[first::num_bands]) for first in range(num_bands)]
    return tuple(sum(chosen) for chosen in combinations(bands, shared))
