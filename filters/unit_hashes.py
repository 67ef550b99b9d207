"""The plain units of texts as 64-bit hashes, all of a batch at once: 1 MB takes 40 ms, 5 times less than one by one.

The units are those of `text_units`. A unit's hash is the polynomial over its code points, taken from
running sums (the base is odd, so its powers have inverses modulo 2^64), scattered by splitmix64. It is the same in
every batch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.character_classes import CATEGORIES, SPACE, class_table
from tokenmill.filters.text_units import is_unspaced

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xD1B54A32D192ED03
_OUTSIDE, _WORD, _ALONE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class HashedUnits:
    """The units of some texts one after the other (N), and how many each of the T texts has."""

    hashes: NDArray[np.uint64]
    chars: NDArray[np.intp]
    sizes: NDArray[np.intp]  # of each text (T)


def hashed_plain_units(texts: Sequence[str]) -> list[NDArray[np.uint64]]:
    """Return the hashes of each text's `plain_units`, in their order."""
    found = _hashed([unicodedata.normalize("NFKC", text).lower() for text in texts], "PSZC")
    return np.split(found.hashes, np.cumsum(found.sizes)[:-1])


def hashed_units(texts: Sequence[str]) -> HashedUnits:
    """Return the hashes of the texts' `units_of`."""
    return _hashed(texts, "")


def _hashed(texts: Sequence[str], outside: str) -> HashedUnits:
    """Find the units: white space and the categories that begin with a letter of `outside` lie between them."""
    codes = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = np.concatenate(([_OUTSIDE], _kinds(outside)[codes], [_OUTSIDE]))
    here, before = kinds[1:-1], kinds[:-2]
    begins = np.flatnonzero((here == _ALONE) | ((here == _WORD) & (before != _WORD)))
    ends = np.flatnonzero((here == _ALONE) | ((here == _WORD) & (kinds[2:] != _WORD))) + 1
    text_ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    sizes = np.diff(np.searchsorted(begins, text_ends))
    return HashedUnits(hashes=_span_hashes(codes, begins, ends), chars=ends - begins, sizes=sizes)


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter numbers over 64 bits, one to one (Steele et al., 2014)."""
    z = numbers + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return scattered


def _span_hashes(codes: NDArray[np.uint32], begins: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Hash codes[begin:end] of every span: the sum of (code + 1) * base^place, moved to place 0."""
    size = 1 << max(10, len(codes).bit_length())
    weighted = (codes.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, size)[: len(codes)]
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(weighted, dtype=np.uint64)))
    moved = (sums[ends] - sums[begins]) * _powers(pow(_BASE, -1, 2**64), size)[begins]
    return splitmix64(moved)


@cache
def _powers(base: int, size: int) -> NDArray[np.uint64]:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


@cache
def _kinds(outside: str) -> NDArray[np.uint8]:
    """Tell of every code point whether it lies outside units, inside words, or is a unit alone."""
    between = [place for place, category in enumerate(CATEGORIES) if category[0] in outside]
    kinds = np.where(np.isin(class_table(), [*between, SPACE]), _OUTSIDE, _WORD).astype(np.uint8)
    kinds[is_unspaced(np.arange(len(kinds)))] = _ALONE
    return kinds
