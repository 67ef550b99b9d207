"""Which rows are near copies of given ones: of evaluation images and texts, for decontamination.

Not a star: every reference counts, also one that is a near copy of another, and rows say nothing about each other.
Vectors are compared with all references, without cells, so nothing is missed there; the price is rows × references
products (a million against ten thousand of 512 axes: some two minutes a core).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.hash_bands import Hashes
from tokenmill.filters.near_hashes import HashNeighbours
from tokenmill.filters.near_texts import Signatures, TextNeighbours
from tokenmill.filters.near_vectors import VectorNeighbours, probes_of_columns
from tokenmill.filters.segments import Columns, OpenRows, first_of
from tokenmill.filters.stars import NOBODY, Positions
from tokenmill.filters.text_bands import choose_banding
from tokenmill.filters.vector_cells import Vectors

_ROWS_AT_ONCE = 1 << 18
_MOST_MISSED = 0.001


def hash_references(hashes: Hashes, references: Hashes, *, max_distance: int, threads: int = 1) -> Positions:
    """Return for each hash the first reference within so many bits, by its place; -1 where none is."""
    open_rows = partial(HashNeighbours.of_columns, max_distance=max_distance, threads=threads)
    return _by_chunks({"hashes": hashes}, {"hashes": references}, open_rows)


def vector_references(vectors: Vectors, references: Vectors, *, min_cosine: float, threads: int = 1) -> Positions:
    """Return for each vector the first reference at so much of a cosine, by its place; -1 where none is.

    Rows that are NaN, infinite or zero equal nothing, on either side.
    """
    open_rows = partial(_open_vectors, min_cosine=min_cosine, threads=threads)
    return _by_chunks({"vectors": vectors}, {"vectors": references}, open_rows)


def text_references(
    signatures: Signatures, references: Signatures, *, min_jaccard: float, threads: int = 1
) -> Positions:
    """Return for each signature the first reference of so much estimated Jaccard, by its place; -1 where none is."""
    banding = choose_banding(signatures.shape[1], min_jaccard, _MOST_MISSED)
    open_rows = partial(TextNeighbours.of_columns, min_jaccard=min_jaccard, banding=banding, threads=threads)
    return _by_chunks({"signatures": signatures}, {"signatures": references}, open_rows)


def _open_vectors(columns: Columns, *, min_cosine: float, threads: int) -> VectorNeighbours:
    everywhere = probes_of_columns(columns, centres=None, num_probes=1)
    return VectorNeighbours.of_columns({**columns, **everywhere}, min_cosine=min_cosine, threads=threads)


def _by_chunks(rows: Columns, references: Columns, open_rows: OpenRows) -> Positions:
    ((name, column),) = rows.items()
    found = np.full(len(column), NOBODY)
    if not len(references[name]):
        return found
    for start in range(0, len(column), _ROWS_AT_ONCE):
        chunk: NDArray[Any] = column[start : start + _ROWS_AT_ONCE]
        found[start : start + len(chunk)] = first_of(references, {name: chunk}, open_rows)
    return found
