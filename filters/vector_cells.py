"""Cells of a space of vectors: where near vectors are looked for, so that not all have to be compared with all.

Spherical k-means (by angle) on a sample. A row's home is the cell of its nearest centre, its probes are the
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

from tokenmill.compiled import compiled

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


def unit(vectors: Vectors | NDArray[np.float64]) -> NDArray[np.float32]:
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
    with one_thread():
        return _means(sample, num_cells)


def _means(sample: NDArray[np.float32], num_cells: int) -> NDArray[np.float32]:
    centres = sample[np.random.default_rng(_SEED).choice(len(sample), num_cells, replace=False)]
    for _ in range(_ROUNDS):
        sums, sizes = np.zeros(centres.shape), np.zeros(num_cells, np.int64)
        cosines = np.empty(len(sample), np.float32)
        for start in range(0, len(sample), _CHUNK_ROWS):
            chunk = sample[start : start + _CHUNK_ROWS]
            products = chunk @ centres.T
            homes = products.argmax(axis=1)
            cosines[start : start + len(chunk)] = np.take_along_axis(products, homes[:, None], axis=1)[:, 0]
            _add_rows(sums, sizes, chunk, homes)
        empty = np.flatnonzero((sizes == 0) | ~sums.any(axis=1))
        sums[empty] = sample[np.argsort(cosines, kind="stable")[: len(empty)]]  # where cells fit worst
        centres = unit(sums)
    return centres


@compiled
def _add_rows(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], rows: NDArray[np.float32], homes: NDArray[np.int64]
) -> None:
    for row in range(len(rows)):
        sizes[homes[row]] += 1
        for axis in range(rows.shape[1]):
            sums[homes[row], axis] += rows[row, axis]


def probe(vectors: Vectors, centres: NDArray[np.float32], num_probes: int) -> NDArray[np.int32]:
    """Return the nearest cells of each row, its home first: (n, num_probes), -1 for rows without direction."""
    probes = np.full((len(vectors), num_probes), -1, np.int32)
    with one_thread():
        for start in range(0, len(vectors), _CHUNK_ROWS):
            chunk = vectors[start : start + _CHUNK_ROWS]
            good = usable(chunk)
            if good.any():
                products = unit(chunk[good]) @ centres.T
                probes[start : start + _CHUNK_ROWS][good] = _highest_columns(products, num_probes)
    return probes


@compiled
def _highest_columns(products: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    columns = np.full((len(products), count), -1, np.int32)
    highest = np.empty(count, np.float32)
    for row in range(len(products)):
        highest[:] = -np.inf
        for column in range(products.shape[1]):
            product = products[row, column]
            if product <= highest[-1]:
                continue
            place = count - 1
            while place > 0 and product > highest[place - 1]:
                highest[place], columns[row, place] = highest[place - 1], columns[row, place - 1]
                place -= 1
            highest[place], columns[row, place] = product, column
    return columns


def one_thread() -> AbstractContextManager[Any]:
    """Let a matrix product have one thread meanwhile: small ones gain nothing from more, and wait for them."""
    return cast(AbstractContextManager[Any], _thread_pools().limit(limits=1))


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
