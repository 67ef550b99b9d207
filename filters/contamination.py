"""Which samples are copies of evaluation samples by their bytes or their words: all of them, not only a star's.

Near ones, by hash, vector or signature, are `near_references.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.filters.stars import NOBODY

Found = NDArray[np.int64]  # for each sample the first evaluation sample it is a copy of, or NOBODY
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def equal(digests: pl.Series, known: pl.Series) -> Found:
    """Find equal digests."""
    first = pl.DataFrame({"digest": known}).with_row_index("of").unique("digest", keep="first", maintain_order=True)
    found = pl.DataFrame({"digest": digests}).join(first, on="digest", how="left", maintain_order="left")["of"]
    return found.cast(pl.Int64).fill_null(NOBODY).to_numpy()


class WordSequences:
    """The sequences of so many words of some evaluation texts; a text that shares one has seen that text.

    Words are runs of letters and digits, in lower case (GPT-3, appendix C: 13 words). A sequence is known by 64 bits:
    of 10^10 sequences compared with 10^6, one is taken for another with a probability of 5 in 10,000.
    """

    def __init__(self, texts: Sequence[str], length: int) -> None:
        self.length = length
        sequences, of = word_sequences(texts, length)
        self._known, first = np.unique(sequences, return_index=True)
        self._of = of[first]

    def find(self, texts: Sequence[str]) -> Found:
        """Return for each text the first evaluation text with a sequence in common."""
        nobody = np.iinfo(np.int64).max
        found = np.full(len(texts), nobody)
        sequences, of = word_sequences(texts, self.length)
        if len(self._known) and len(sequences):
            places = np.minimum(np.searchsorted(self._known, sequences), len(self._known) - 1)
            hits = self._known[places] == sequences
            np.minimum.at(found, of[hits], self._of[places[hits]])
        return np.where(found == nobody, NOBODY, found)


def word_sequences(texts: Sequence[str], length: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return every sequence of `length` words of some texts as 64 bits, and the text each is from, in order."""
    words = pl.Series(texts, dtype=pl.String).str.to_lowercase().str.extract_all(r"\w+")
    counts = words.list.len().to_numpy().astype(np.int64)
    flat = words.explode().drop_nulls().hash(seed=7).to_numpy()
    if len(flat) < length:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    starts = len(flat) - length + 1
    sequences = np.zeros(starts, np.uint64)
    for place in range(length):  # wrapping arithmetic: a polynomial over 64 bits
        sequences = sequences * _MULTIPLIER + flat[place : place + starts]
        sequences ^= sequences >> np.uint64(29)
    of = np.repeat(np.arange(len(texts)), counts)
    within = of[:starts] == of[length - 1 :]
    return sequences[within], of[:starts][within]
