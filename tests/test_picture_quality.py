"""PSNR, SSIM and Fréchet distances against other implementations and closed forms; the FID's network by its layout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tokenmill.demo.scenes import render, scene
from tokenmill.errors import RecipeError
from tokenmill.generate.frechet import Moments, frechet_distance
from tokenmill.generate.inception import FidInception
from tokenmill.generate.picture_features import open_features
from tokenmill.tokenize.picture_quality import psnr_db, ssim


def pair(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random_of = np.random.default_rng(seed)
    picture = render(scene(seed), max(height, width))[:height, :width]
    noisy = picture + random_of.normal(0, 3 + 20 * seed, picture.shape)
    return picture, noisy.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("seed", "height", "width"), [(0, 11, 11), (1, 64, 48), (2, 40, 97), (3, 128, 128)])
def test_psnr_and_ssim_are_those_of_scikit_image(seed: int, height: int, width: int) -> None:
    one, two = pair(seed, height, width)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    wanted = structural_similarity(one, two, channel_axis=-1, **options)
    assert ssim(np.stack([one, one]), np.stack([two, one])) == pytest.approx([wanted, 1.0], abs=1e-6)
    assert psnr_db(one, two) == pytest.approx(peak_signal_noise_ratio(one, two, data_range=255), abs=1e-9)
    assert psnr_db(one, one) == math.inf


def test_ssim_of_a_picture_smaller_than_its_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="11 px"):
        ssim(np.zeros((1, 10, 20, 3), np.uint8), np.zeros((1, 10, 20, 3), np.uint8))


def moments_of(rows: np.ndarray, batch: int = 37) -> Moments:
    found = Moments()
    for start in range(0, len(rows), batch):
        found.add(rows[start : start + batch].astype(np.float32))
    return found


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 400) -> np.ndarray:
    """Return rows that have exactly this mean and covariance."""
    rows = np.random.default_rng(0).normal(size=(count, len(mean)))
    rows -= rows.mean(axis=0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T)).T)
    return white @ np.linalg.cholesky(covariance).T + mean


def test_moments_of_batches_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(1).normal(1000, 3, (250, 5)).astype(np.float32)
    found = moments_of(rows)
    assert found.mean == pytest.approx(rows.astype(np.float64).mean(axis=0), abs=1e-9)
    assert found.covariance == pytest.approx(np.cov(rows.astype(np.float64).T), abs=1e-9)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Of covariances that commute: |m1 - m2|² + Σ (s1 - s2)²."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    first, second = np.array([4.0, 1.0, 9.0, 0.25]), np.array([1.0, 1.0, 16.0, 2.25])
    one = moments_of(with_moments(np.zeros(4), turn @ np.diag(first) @ turn.T))
    two = moments_of(with_moments(np.array([1.0, 0, 2, 0]), turn @ np.diag(second) @ turn.T))
    wanted = 5.0 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(one, two) == pytest.approx(wanted, rel=1e-5)
    assert frechet_distance(two, one) == pytest.approx(wanted, rel=1e-5)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_fewer_rows_than_features_is_finite() -> None:
    random_of = np.random.default_rng(3)
    one, two = (moments_of(random_of.normal(size=(5, 40))) for _ in range(2))
    assert 0 < frechet_distance(one, two) < 400
    with pytest.raises(ValueError, match="two rows"):
        _ = moments_of(np.zeros((1, 3))).covariance


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights in pytorch-fid's layout, the classifier included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {name: value.half() for name, value in FidInception().network.state_dict().items()}
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def test_inception_of_a_file_gives_features_of_its_weights(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "fid.safetensors")
    features = open_features(tmp_path / "fid.safetensors")
    pictures = np.stack([render(scene(seed), 64) for seed in range(2)])
    found = features.measure(pictures)
    assert (features.name, features.is_fid, found.shape, found.dtype) == ("inception", True, (2, 2048), np.float64)
    assert np.abs(found[0] - found[1]).max() > 0
    torch.save(weights, tmp_path / "fid.pth")
    assert (open_features(tmp_path / "fid.pth").measure(pictures[:1]) == features.measure(pictures[:1])).all()


def test_pools_of_the_fid_leave_the_border_out_of_the_mean() -> None:
    """Of equal values every pool gives that value, to the border: torchvision's own gives 4/9 of it in a corner."""
    block = FidInception().network.Mixed_5b
    block.branch_pool = torch.nn.Identity()
    assert block._forward(torch.ones(1, 192, 5, 5))[-1].unique().tolist() == [1.0]
    last = FidInception().network.Mixed_7c
    last.branch_pool = torch.nn.Identity()
    ramp = torch.arange(9.0).reshape(1, 1, 3, 3).expand(1, 2048, 3, 3)
    assert last._forward(ramp)[-1][0, 0].tolist() == [[4, 5, 5], [7, 8, 8], [7, 8, 8]]


def test_features_that_are_none_are_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    few = {name: value for name, value in weights.items() if not name.startswith("Mixed_7c.")}
    save_file(few, tmp_path / "few.safetensors")
    save_file(weights | {"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 1, 1)}, tmp_path / "odd.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    (tmp_path / "folder").mkdir()
    told = {
        "few.safetensors": "lacks Mixed_7c",
        "odd.safetensors": "Conv2d_1a_3x3",
        "other.safetensors": "not the FID's",
    }
    told |= {"bad.pth": "no file of weights", "absent.pth": "cannot be read", "folder": "no image encoder"}
    for name, why in told.items():
        with pytest.raises(RecipeError, match=why):
            open_features(tmp_path / name)


def test_folder_of_an_encoder_gives_its_pooled_features(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    features = open_features(tmp_path)
    found = features.measure(np.stack([render(scene(seed), 40) for seed in range(3)]))
    assert (features.name, features.is_fid, found.shape) == ("dinov2", False, (3, 16))
    assert np.abs(found[0] - found[1]).max() > 0
