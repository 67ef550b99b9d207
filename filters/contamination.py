"""Which samples are copies of evaluation samples: all of them within the threshold, not only a star's.

What "near" means is exactly what it means for duplicates, because the same engines compare; here the evaluation samples
are the kept ones and nothing stands for anything else. Vectors are compared with every evaluation vector, without the
cells that may miss a pair: an evaluation set is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

NOBODY = -1
Found = NDArray[np.int64]  # for each sample the first evaluation sample it is a copy of, or NOBODY
_MOST_MISSED = 1e-4  # of the pairs at the threshold, by the bands of MinHash
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def equal(digests: pl.Series, known: pl.Series) -> Found:
    """Find equal digests."""
    first = pl.DataFrame({"digest": known}).with_row_index("of").unique("digest", keep="first", maintain_order=True)
    found = pl.DataFrame({"digest": digests}).join(first, on="digest", how="left", maintain_order="left")["of"]
    return found.cast(pl.Int64).fill_null(NOBODY).to_numpy()


def near_pictures(hashes: NDArray[np.uint64], known: NDArray[np.uint64], max_distance: int) -> Found:
    """Find perceptual hashes within `max_distance` bits."""
    from tokenmill.filters.near_hashes import HashNeighbours

    return _first(HashNeighbours(np.concatenate([known, hashes]), max_distance=max_distance), len(known))


def near_vectors(vectors: NDArray[Any], known: NDArray[Any], min_cosine: float) -> Found:
    """Find vectors with at least such a cosine; those that are NaN, infinite or zero equal nothing."""
    from tokenmill.filters.near_vectors import VectorNeighbours, probes_of_columns

    columns = {"vectors": np.concatenate([known, vectors])}
    probes = probes_of_columns(columns, centres=None, num_probes=1)["probes"]
    return _first(VectorNeighbours(columns["vectors"], probes, min_cosine=min_cosine), len(known))


def near_texts(signatures: NDArray[np.uint32], known: NDArray[np.uint32], min_jaccard: float) -> Found:
    """Find MinHash signatures with at least such an estimated likeness."""
    from tokenmill.filters.near_texts import TextNeighbours
    from tokenmill.filters.text_bands import choose_banding

    rows = np.concatenate([known, signatures])
    banding = choose_banding(rows.shape[1], min_jaccard, _MOST_MISSED)
    return _first(TextNeighbours(rows, min_jaccard=min_jaccard, banding=banding), len(known))


def _first(neighbours: Any, num_known: int) -> Found:
    rows: NDArray[np.int64] = neighbours.comparable()
    known, asking = rows[rows < num_known], rows[rows >= num_known]
    found = np.full(len(_all_rows(neighbours)) - num_known, NOBODY)
    if len(known) and len(asking):
        found[asking - num_known] = neighbours.first(asking, known)
    return found


def _all_rows(neighbours: Any) -> Any:
    return next(getattr(neighbours, name) for name in ("hashes", "vectors", "signatures") if hasattr(neighbours, name))


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
