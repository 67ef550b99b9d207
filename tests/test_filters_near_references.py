"""Near copies of given rows: every reference counts, and only references do."""

from __future__ import annotations

import numpy as np
import pytest
from tests.near_rows import flipped, made_hashes

from tokenmill.filters.near_references import hash_references, text_references, vector_references


def first_by(near):
    """Turn a matrix (rows, references) into the first reference of each row, -1 where none is."""
    return np.where(near.any(axis=1), near.argmax(axis=1), -1)


def test_hashes_name_the_first_reference_within_the_distance():
    references = made_hashes(900, 300, 4)
    rows = np.concatenate([flipped(references[::3], 3, np.random.default_rng(1)), made_hashes(5000, 1000, 4, seed=2)])
    near = np.bitwise_count(rows[:, None] ^ references) <= 4
    found = hash_references(rows, references, max_distance=4)
    assert np.array_equal(found, first_by(near))
    assert (found[:300] >= 0).all() and (found[300:] >= 0).sum() < 50


def test_copy_of_a_reference_that_is_a_copy_of_another_is_found():
    references = np.array([0b0, 0b1111], np.uint64)
    rows = np.array([0b1111_1111, 0b11, 0b1111_1111_1111], np.uint64)
    assert hash_references(rows, references, max_distance=4).tolist() == [1, 0, -1]


def test_vectors_name_the_first_reference_and_null_rows_none():
    generator = np.random.default_rng(0)
    references = generator.normal(size=(700, 32)).astype(np.float16)
    references[5] = np.nan
    rows = np.concatenate([references, generator.normal(size=(20_000, 32)).astype(np.float16)])
    rows[:700] += (0.1 * generator.normal(size=(700, 32))).astype(np.float16)
    rows[-1] = 0
    found = vector_references(rows, references, min_cosine=0.97)
    assert found[:700].tolist() == [place if place != 5 else -1 for place in range(700)]
    assert (found[700:] == -1).all()


def test_texts_name_the_first_reference():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2**32, (500, 128), dtype=np.uint32)
    rows = np.concatenate([references[::-1], generator.integers(0, 2**32, (500, 128), dtype=np.uint32)])
    rows[:500, :20] += 1
    assert text_references(rows, references, min_jaccard=0.8).tolist() == [*range(499, -1, -1), *[-1] * 500]


@pytest.mark.parametrize("rows", [0, 3])
def test_no_references_match_nothing(rows):
    assert hash_references(np.zeros(rows, np.uint64), np.zeros(0, np.uint64), max_distance=2).tolist() == [-1] * rows
