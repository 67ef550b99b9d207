"""MinHash signatures: the share of equal places of two signatures estimates how alike two texts are (Broder, 1997).

Alike is the Jaccard index J of their sets of shingles, runs of `shingle_units` units (`text_units.plain_units`: NFKC, lower
case, no punctuation; words, or characters where a script puts no spaces). The estimate's standard error is
sqrt(J (1 - J) / num_permutations): at most .044 for 128, .035 at J = .8.

Ours rather than a library's, because signatures lie on disk for years: datasketch and rensa have both changed what they
compute between versions. A unit is hashed by BLAKE2b (64 bits), a shingle by a polynomial over its units, and place i of
the signature is the least ((a_i * shingle + b_i) mod 2^64) >> 32, a_i odd, with a_i and b_i drawn by splitmix64 from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.character_classes import UNICODE
from tokenmill.filters.scorer import Columns, fingerprint_of
from tokenmill.filters.text_units import plain_units

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BASE = np.uint64(0xD1B54A32D192ED03)
_BLOCK = 2048  # shingles times permutations at a time stay in the second-level cache
_MOST_CACHED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MinHash:
    """A signature of `num_permutations` unsigned 32-bit numbers; null for a text without a letter or digit.

    A text of fewer than `shingle_units` units has one shingle: all of it.
    """

    num_permutations: Annotated[int, Field(ge=8, le=1024)] = 128
    shingle_units: Annotated[int, Field(ge=1, le=32)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1

    name: ClassVar = "minhash"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 256

    @property
    def columns(self) -> dict[str, Any]:
        return {"minhash": pl.Array(pl.UInt32(), self.num_permutations)}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=UNICODE)

    def score(self, batch: Sequence[str]) -> Columns:
        """Sign texts; within a batch each different unit is hashed once."""
        hashes: dict[str, int] = {}
        return {"minhash": [self._signature(plain_units(text), hashes) for text in batch]}

    def _signature(self, units: Sequence[str], hashes: dict[str, int]) -> list[int] | None:
        if not units:
            return None
        shingles = shingle_hashes(_hashed(units, hashes), self.shingle_units)
        least: NDArray[np.uint32] = self._least(np.unique(shingles))
        return least.tolist()  # type: ignore[no-any-return]

    def _least(self, shingles_N: NDArray[np.uint64]) -> NDArray[np.uint32]:
        factors_P1, offsets_P1 = self._permutations
        least_P = np.full(self.num_permutations, np.iinfo(np.uint64).max, np.uint64)
        step = max(1, _BLOCK * 128 // self.num_permutations // 8)
        for start in range(0, len(shingles_N), step):
            mixed_PN = factors_P1 * shingles_N[start : start + step] + offsets_P1
            np.minimum(least_P, mixed_PN.min(axis=1), out=least_P)
        return (least_P >> np.uint64(32)).astype(np.uint32)

    @cached_property
    def _permutations(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return a_i and b_i as columns (P, 1)."""
        draws = splitmix64(np.uint64(self.seed) * _BASE + np.arange(2 * self.num_permutations, dtype=np.uint64))
        factors, offsets = draws.reshape(2, -1)
        return (factors | np.uint64(1))[:, None], offsets[:, None]


def shingle_hashes(units_N: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Hash every run of `size` units, or the one shorter run that there is."""
    size = min(size, len(units_N))
    hashed = np.zeros(len(units_N) - size + 1, np.uint64)
    for place in range(size):
        hashed = hashed * _BASE + units_N[place : place + len(hashed)]
    return splitmix64(hashed)


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter numbers over 64 bits, one to one (Steele et al., 2014)."""
    z = numbers + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return scattered


def _hashed(units: Sequence[str], known: dict[str, int]) -> NDArray[np.uint64]:
    for unit in set(units).difference(known):
        known[unit] = int.from_bytes(blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    return np.fromiter(map(known.__getitem__, units), np.uint64, len(units))
