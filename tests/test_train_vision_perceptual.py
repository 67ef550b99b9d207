"""LPIPS from files: the paper's formula recomputed from the weights; the layouts people have; what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.lpips_weights import VGG, alex_linear, alex_weights, drawn, linear_weights
from torch.nn import functional

from tokenmill.errors import RecipeError
from tokenmill.train.vision_perceptual import load_lpips


def alex_distance(weights: dict[str, torch.Tensor], one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Equation 1 of Zhang et al., written layer by layer for AlexNet."""
    layers = []
    for pixels in (one, other):
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
        hidden, taps = (pixels - mean) / deviation, []
        for index, (stride, padding, pool) in {
            0: (4, 2, 0),
            3: (1, 2, 1),
            6: (1, 1, 1),
            8: (1, 1, 0),
            10: (1, 1, 0),
        }.items():
            hidden = functional.max_pool2d(hidden, 3, 2) if pool else hidden
            kernel, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            hidden = functional.relu(functional.conv2d(hidden, kernel, bias, stride, padding))
            taps.append(hidden / (hidden.norm(dim=1, keepdim=True) + 1e-10))
        layers.append(taps)
    total = torch.zeros(len(one))
    for index, (first, second) in enumerate(zip(*layers, strict=True)):
        total += torch.einsum(
            "bchw,c->bhw", (first - second) ** 2, weights[f"lin{index}.model.1.weight"].flatten()
        ).mean((1, 2))
    return total


def pictures(count: int = 3, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return drawn(count, 3, side, side, seed=7).tanh(), drawn(count, 3, side, side, seed=8).tanh()


def test_distance_of_pictures_is_the_papers_formula(tmp_path: Path) -> None:
    weights = alex_weights() | alex_linear()
    save_file(weights, tmp_path / "lpips.safetensors")
    one, other = pictures()
    found = load_lpips(tmp_path / "lpips.safetensors")(one, other)
    assert found.shape == (3,)
    torch.testing.assert_close(found, alex_distance(weights, one, other), rtol=1e-4, atol=1e-6)


def test_distance_is_zero_for_equal_pictures_and_its_gradient_is_finite_even_where_features_are_zero(
    tmp_path: Path,
) -> None:
    weights = alex_weights() | alex_linear()
    weights |= {name: -100 * torch.ones_like(value) for name, value in weights.items() if name == "features.0.bias"}
    save_file(weights, tmp_path / "lpips.safetensors")
    lpips = load_lpips(tmp_path / "lpips.safetensors", network="alex")
    one, other = pictures(1)
    assert lpips(one, one).item() == 0
    lpips(one.requires_grad_(), other).sum().backward()
    assert one.grad is not None and bool(one.grad.isfinite().all())
    assert not [name for name, parameter in lpips.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("layout", ["torchvision and lpips in a folder", "lpips whole", "prefixed checkpoint"])
def test_layouts_people_have_give_the_same_distance(layout: str, tmp_path: Path) -> None:
    backbone, linear = alex_weights(), alex_linear()
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    sliced = {f"net.slice{slices[int(n.split('.')[1])]}.{n.removeprefix('features.')}": v for n, v in backbone.items()}
    if layout == "torchvision and lpips in a folder":
        torch.save(backbone | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
        torch.save(linear, tmp_path / "alex.pth")
        path = tmp_path
    elif layout == "lpips whole":
        twice = {name.replace("lin", "lins.", 1): value for name, value in linear.items()}
        path = tmp_path / "whole.pth"
        torch.save(sliced | linear | twice | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, path)
    else:
        path = tmp_path / "last.ckpt"
        state = {f"loss.perceptual_loss.{name}": value for name, value in (sliced | linear).items()}
        torch.save({"state_dict": state, "epoch": 3}, path)
    one, other = pictures()
    torch.testing.assert_close(load_lpips(path)(one, other), alex_distance(backbone | linear, one, other))


def test_vgg_is_told_from_its_widths(tmp_path: Path) -> None:
    weights = linear_weights((64, 128, 256, 512, 512))
    for index, (out, inner) in VGG.items():
        weights[f"features.{index}.weight"] = drawn(out, inner, 3, 3, seed=index) / (9 * inner) ** 0.5
        weights[f"features.{index}.bias"] = torch.zeros(out)
    save_file(weights, tmp_path / "vgg.safetensors")
    lpips = load_lpips(tmp_path / "vgg.safetensors")
    one, other = pictures(2, 16)
    assert lpips.network == "vgg"
    assert lpips(one, other).gt(0).all()
    with pytest.raises(RecipeError, match=r"VGG16 needs sides of 16 px or more \(found 8x8\)"):
        lpips(*pictures(1, 8))


def test_linear_weights_alone_name_what_is_missing(tmp_path: Path) -> None:
    torch.save(linear_weights((64, 128, 256, 512, 512)), tmp_path / "vgg.pth")
    with pytest.raises(RecipeError, match=r"vgg.pth: LPIPS with VGG16 lacks features.0.weight, .* and 20 more"):
        load_lpips(tmp_path / "vgg.pth")


def test_weights_of_another_network_or_none_at_all_are_refused(tmp_path: Path) -> None:
    save_file(alex_weights() | alex_linear(), tmp_path / "alex.safetensors")
    with pytest.raises(RecipeError, match=r"lacks features\.2\.weight"):
        load_lpips(tmp_path / "alex.safetensors", network="vgg")
    save_file(alex_weights() | linear_weights((64, 192, 384, 256, 9)), tmp_path / "narrow.safetensors")
    with pytest.raises(RecipeError, match=r"lin4.model.1.weight is \(1, 9, 1, 1\)"):
        load_lpips(tmp_path / "narrow.safetensors")
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RecipeError, match="no weights of LPIPS"):
        load_lpips(tmp_path / "other.safetensors")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    for path in (tmp_path / "torn.pth", tmp_path / "absent.pth"):
        with pytest.raises(RecipeError, match=path.name):
            load_lpips(path)
