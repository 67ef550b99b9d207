"""MinHash signatures: the share of equal places of two signatures estimates how alike two texts are (Broder, 1997).

Alike is the Jaccard index J of their sets of shingles, runs of `shingle_units` units (`text_units.plain_units`: NFKC,
lower case, no punctuation; words, or characters where a script puts no spaces). The estimate's standard error is
sqrt(J (1 - J) / num_permutations): at most .044 for 128, .035 at J = .8.

Ours rather than a library's, because signatures lie on disk for years and have to be compared with those of later
versions. A shingle is hashed as a polynomial over its units' hashes (`unit_hashes.py`); place i of the signature is the
least (a_i * shingle + b_i) mod 2^32, a_i odd, with a_i and b_i drawn by splitmix64 from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.character_classes import UNICODE
from tokenmill.filters.scorer import Columns, fingerprint_of
from tokenmill.filters.text_groups import text_groups
from tokenmill.filters.unit_hashes import hashed_plain_units, splitmix64

_BASE = np.uint64(0xD1B54A32D192ED03)
_BLOCK_NUMBERS = 2**16  # of 4 bytes: what is mixed at a time stays in the second-level cache


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
    batch_size: ClassVar = 64

    @property
    def columns(self) -> dict[str, Any]:
        return {"minhash": pl.Array(pl.UInt32(), self.num_permutations)}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=UNICODE)

    def score(self, batch: Sequence[str]) -> Columns:
        """Sign texts; a text's signature does not depend on the others."""
        return {
            "minhash": [self._signature(units) for group in text_groups(batch) for units in hashed_plain_units(group)]
        }

    def _signature(self, units_N: NDArray[np.uint64]) -> list[int] | None:
        if not len(units_N):
            return None
        shingles_N = shingle_hashes(units_N, self.shingle_units)
        factors_P1, offsets_P1 = self._permutations
        least_P = np.full(self.num_permutations, np.iinfo(np.uint32).max, np.uint32)
        step = max(1, _BLOCK_NUMBERS // self.num_permutations)
        for start in range(0, len(shingles_N), step):
            mixed_PN = factors_P1 * shingles_N[start : start + step]
            mixed_PN += offsets_P1
            np.minimum(least_P, mixed_PN.min(axis=1), out=least_P)
        return least_P.tolist()

    @cached_property
    def _permutations(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Return a_i and b_i as columns (P, 1)."""
        numbers = np.arange(2 * self.num_permutations, dtype=np.uint64)
        draws = splitmix64(splitmix64(np.full(1, self.seed, np.uint64)) + numbers) >> np.uint64(32)
        factors, offsets = draws.astype(np.uint32).reshape(2, -1)
        return (factors | np.uint32(1))[:, None], offsets[:, None]


def shingle_hashes(units_N: NDArray[np.uint64], size: int) -> NDArray[np.uint32]:
    """Hash every run of `size` units to 32 bits, or the one shorter run that there is."""
    size = min(size, len(units_N))
    hashed = np.zeros(len(units_N) - size + 1, np.uint64)
    for place in range(size):
        hashed = hashed * _BASE + units_N[place : place + len(hashed)]
    return (splitmix64(hashed) >> np.uint64(32)).astype(np.uint32)
