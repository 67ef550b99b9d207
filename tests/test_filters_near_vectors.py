"""Near copies by embedding: recall against comparing all with all, and no false drop."""

from __future__ import annotations

import numpy as np
import pytest
from tests.near_rows import greedy_leaders_of_blocks, map_backwards

from tokenmill.filters.near_vectors import vector_leaders


def made_vectors(count, copies, axes=48, topics=60, noise=0.25, seed=0):
    """Vectors in topics, as embeddings are; `copies` of them lie around another, at the cosine of 0.9 to 0.99."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(topics, axes))
    originals = centres[generator.integers(0, topics, count - copies)] + generator.normal(size=(count - copies, axes))
    originals /= np.linalg.norm(originals, axis=1, keepdims=True)
    spread = generator.uniform(0.02, noise, copies)[:, None]
    near = originals[generator.integers(0, len(originals), copies)]
    near = near + spread * generator.normal(size=near.shape) / np.sqrt(axes) * 2
    return generator.permutation(np.concatenate([originals, near])).astype(np.float32)


def greedy_vector_leaders(vectors, min_cosine):
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return greedy_leaders_of_blocks(len(units), lambda rows: units[rows] @ units.T >= min_cosine)


def cosines_of_drops(vectors, leaders):
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    dropped = np.flatnonzero(leaders != np.arange(len(leaders)))
    return np.einsum("nd,nd->n", units[dropped], units[leaders[dropped]]), leaders[dropped]


def test_few_vectors_equal_brute_force():
    vectors = made_vectors(3000, 1500)
    leaders = vector_leaders(vectors, min_cosine=0.95)
    assert np.array_equal(leaders, greedy_vector_leaders(vectors, 0.95))
    assert 300 < np.count_nonzero(leaders != np.arange(3000)) < 1500


def test_many_vectors_in_cells_have_recall_and_no_false_drop():
    vectors = made_vectors(17_000, 8000).astype(np.float16)
    leaders = vector_leaders(vectors, min_cosine=0.95)
    expected = greedy_vector_leaders(vectors, 0.95)
    dropped, to_drop = leaders != np.arange(len(leaders)), expected != np.arange(len(expected))
    assert np.count_nonzero(dropped & to_drop) >= 0.99 * np.count_nonzero(to_drop) > 3000
    cosines, of = cosines_of_drops(vectors, leaders)
    assert cosines.min() >= 0.95 - 1e-6
    assert not dropped[of].any()


def test_threads_and_segments_on_disk_change_nothing(tmp_path):
    vectors = made_vectors(20_000, 6000)
    leaders = vector_leaders(vectors, min_cosine=0.95)
    in_parts = vector_leaders(
        vectors, min_cosine=0.95, workspace=tmp_path / "parts", rows_at_once=7000, map_parts=map_backwards
    )
    assert np.array_equal(in_parts, leaders)
    assert np.array_equal(vector_leaders(vectors, min_cosine=0.95, threads=3), leaders)


def test_vectors_without_direction_equal_nothing():
    vectors = made_vectors(40, 0)
    vectors[[3, 4]] = np.nan
    vectors[[5, 6]] = 0
    vectors[7, 0] = np.inf
    vectors[9] = vectors[8] * 1000
    leaders = vector_leaders(vectors, min_cosine=1.0)
    assert np.flatnonzero(leaders != np.arange(40)).tolist() == [9]
    assert leaders[9] == 8


def test_many_vectors_without_direction_equal_nothing(tmp_path):
    vectors = made_vectors(20_000, 6000)
    vectors[::7] = np.nan
    leaders = vector_leaders(vectors, min_cosine=0.95, workspace=tmp_path / "parts", rows_at_once=7000)
    assert np.array_equal(leaders[::7], np.arange(0, 20_000, 7))
    assert not np.isin(leaders[leaders != np.arange(20_000)], np.arange(0, 20_000, 7)).any()
    assert np.array_equal(leaders, vector_leaders(vectors, min_cosine=0.95))


def test_equal_vectors_stand_for_each_other_at_the_highest_threshold():
    vectors = np.repeat(made_vectors(300, 0), 3, axis=0)
    assert vector_leaders(vectors, min_cosine=1.0).tolist() == (np.arange(900) // 3 * 3).tolist()


def test_large_float32_values_do_not_overflow():
    vectors = made_vectors(10, 0) * np.float32(1e38)
    assert vector_leaders(np.concatenate([vectors, vectors]), min_cosine=0.999).tolist() == [*range(10), *range(10)]


@pytest.mark.parametrize("min_cosine", [0, -0.5, 1.01, float("nan")])
def test_threshold_out_of_range_is_refused(min_cosine):
    with pytest.raises(ValueError, match="min_cosine"):
        vector_leaders(made_vectors(4, 0), min_cosine=min_cosine)


def test_vectors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="float64"):
        vector_leaders(np.zeros((3, 4)), min_cosine=0.9)


def test_no_vectors_have_no_leaders():
    assert vector_leaders(np.zeros((0, 8), np.float32), min_cosine=0.9).tolist() == []
