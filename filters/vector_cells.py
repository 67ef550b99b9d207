"""Cells of a space of vectors: where near vectors are looked for, so that not all have to be compared with all.

k-means by faiss on a sample, spherical (by angle). A row's home is the cell of its nearest centre, its probes are the
few nearest cells; a pair counts as near only if the better row's home is among the worse row's probes. That relation
belongs to the two rows alone, so it is the same however rows are batched, and its price is recall: measured in
docs/duplicates.md. One thread and chunks of one size, because sums of floats depend on both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.compiled import compiled

Vectors = NDArray[np.float32] | NDArray[np.float16]

EXACT_ROWS = 1 << 14  # up to so many rows all are compared with all
_CHUNK_ROWS = 4096
_TRAINED_ON = 64  # rows a centre
_ROUNDS = 8
_SEED = 20_240_918


def usable(vectors: Vectors) -> NDArray[np.bool_]:
    """Tell which rows have a direction: finite and not zero."""
    chunks = [np.empty(0, bool)]
    for start in range(0, len(vectors), _CHUNK_ROWS):
        chunk = np.asarray(vectors[start : start + _CHUNK_ROWS], np.float32)
        chunks.append(np.isfinite(chunk).all(axis=1) & (chunk != 0).any(axis=1))
    return np.concatenate(chunks)


def unit(vectors: Vectors) -> NDArray[np.float32]:
    """Scale rows to length one, each by itself, so that a row's digits don't depend on its neighbours."""
    return _unit(np.ascontiguousarray(vectors, np.float32))


@compiled
def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    units = np.empty(vectors.shape, np.float32)
    for row in range(len(vectors)):
        square = 0.0
        for axis in range(vectors.shape[1]):
            square += np.float64(vectors[row, axis]) ** 2
        length = np.sqrt(square)
        for axis in range(vectors.shape[1]):
            units[row, axis] = np.float64(vectors[row, axis]) / length
    return units


def train_cells(vectors: Vectors) -> NDArray[np.float32] | None:
    """Return the centres of about 2·√n cells (cells, d); None for so few rows that cells save nothing."""
    num_cells = 2 * int(np.sqrt(len(vectors)))
    if len(vectors) <= EXACT_ROWS:
        return None
    step = max(1, len(vectors) // (num_cells * _TRAINED_ON))
    sample: Vectors = vectors[::step]
    sample = unit(sample[usable(sample)])
    if len(sample) < num_cells:
        return None
    faiss = _faiss()
    means = faiss.Kmeans(sample.shape[1], num_cells, niter=_ROUNDS, seed=_SEED, spherical=True)
    means.cp.min_points_per_centroid = 1
    means.cp.max_points_per_centroid = 2 * _TRAINED_ON
    with one_thread():
        means.train(sample)
    return np.asarray(means.centroids, np.float32)


def probe(vectors: Vectors, centres: NDArray[np.float32], num_probes: int) -> NDArray[np.int32]:
    """Return the nearest cells of each row, its home first: (n, num_probes), -1 for rows without direction."""
    index = _faiss().IndexFlatIP(centres.shape[1])
    index.add(centres)
    probes = np.full((len(vectors), num_probes), -1, np.int32)
    with one_thread():
        for start in range(0, len(vectors), _CHUNK_ROWS):
            chunk = vectors[start : start + _CHUNK_ROWS]
            good = usable(chunk)
            if good.any():
                probes[start : start + _CHUNK_ROWS][good] = index.search(unit(chunk[good]), num_probes)[1]
    return probes


def one_thread() -> AbstractContextManager[Any]:
    """Let a matrix product have one thread meanwhile: small ones gain nothing from more, and wait for them."""
    return cast(AbstractContextManager[Any], _thread_pools().limit(limits=1))


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    _faiss()  # brings a BLAS of its own
    return ThreadpoolController()


def _faiss() -> Any:
    import faiss

    return faiss
