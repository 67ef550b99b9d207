"""Small random weights of LPIPS under the names that files of it have; none can be had from a package."""

from __future__ import annotations

import torch

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG = {
    0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256),
    17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alex_weights() -> dict[str, torch.Tensor]:
    """Small random weights under the names of torchvision's AlexNet."""
    found = {}
    for index, (out, inner, side) in ALEX.items():
        found[f"features.{index}.weight"] = drawn(out, inner, side, side, seed=index) / (inner * side * side) ** 0.5
        found[f"features.{index}.bias"] = 0.1 * drawn(out, seed=100 + index)
    return found


def linear_weights(widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {f"lin{i}.model.1.weight": drawn(1, width, 1, 1, seed=i).abs() / width for i, width in enumerate(widths)}


def alex_linear() -> dict[str, torch.Tensor]:
    return linear_weights((64, 192, 384, 256, 256))
