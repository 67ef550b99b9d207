"""Sizes and values a picture has before it is tokenized."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import SampleError
from tokenmill.tokenize.preprocess import normalise, resize, target_size


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((512, 512), (512**2, 1024**2), (512, 512)),
        ((517, 700), (512**2, 1024**2), (520, 704)),  # within the area: only rounded
        ((2000, 3000), (512**2, 1024**2), (832, 1248)),  # down, rounding down
        ((100, 150), (512**2, 1024**2), (424, 632)),  # up, rounding up
        ((512, 512), (256**2, 256**2), (256, 256)),
        ((300, 451), (256**2, 256**2), (208, 312)),
    ],
)
def test_target_size_follows_the_released_rule(
    size: tuple[int, int], area: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert target_size(*size, min_area=area[0], max_area=area[1], max_aspect=5, multiple=8) == expected


@given(st.integers(16, 3000), st.integers(16, 3000))
def test_target_size_keeps_multiples_and_area(height: int, width: int) -> None:
    if max(height, width) > 5 * min(height, width):
        return
    rows, columns = target_size(height, width, min_area=256**2, max_area=512**2, max_aspect=5, multiple=8)
    assert rows % 8 == columns % 8 == 0
    assert 256**2 <= rows * columns <= 512**2


@pytest.mark.parametrize(
    ("size", "reason"), [((64, 400), "aspect_too_large"), ((400, 64), "aspect_too_large"), ((7, 20), "too_small")]
)
def test_picture_out_of_bounds_is_a_sample_error(size: tuple[int, int], reason: str) -> None:
    with pytest.raises(SampleError) as caught:
        target_size(*size, min_area=64**2, max_area=512**2, max_aspect=5, multiple=8)
    assert caught.value.reason == reason


def test_resize_keeps_a_picture_of_the_right_size_and_its_mean_otherwise() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    assert resize(picture, (64, 48)) is picture
    small = resize(picture, (16, 24))
    assert small.shape == (16, 24, 3)
    assert abs(float(small.mean()) - float(picture.mean())) < 2


def test_normalise_maps_bytes_to_minus_one_to_one() -> None:
    values = normalise(np.array([0, 255], np.uint8))
    assert values.dtype == np.float32
    assert values.tolist() == [-1.0, 1.0]
