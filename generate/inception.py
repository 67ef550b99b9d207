"""The Inception-v3 of the FID: the network of Heusel et al. 2017 as pytorch-fid ported it, from a file of weights.

It is not torchvision's: three of its pools leave the border out of the mean, the last takes the maximum, and its
weights are TensorFlow's of 2015-12-05. Figures of other features are no FIDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from tokenmill.errors import RecipeError

SIDE_PX = 299
NUM_FEATURES = 2048
_NUM_CLASSES = 1008


class _A(InceptionA):  # type: ignore[misc]
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        branches: list[torch.Tensor] = super()._forward(x)
        return [*branches[:-1], self.branch_pool(_mean_pool(x))]


class _C(InceptionC):  # type: ignore[misc]
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        branches: list[torch.Tensor] = super()._forward(x)
        return [*branches[:-1], self.branch_pool(_mean_pool(x))]


class _E1(InceptionE):  # type: ignore[misc]
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        branches: list[torch.Tensor] = super()._forward(x)
        return [*branches[:-1], self.branch_pool(_mean_pool(x))]


class _E2(InceptionE):  # type: ignore[misc]
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        branches: list[torch.Tensor] = super()._forward(x)
        return [*branches[:-1], self.branch_pool(functional.max_pool2d(x, kernel_size=3, stride=1, padding=1))]


def _mean_pool(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class FidInception(nn.Module):
    """Pictures (B, 3, H, W) in 0..1 to 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        network = Inception3(num_classes=_NUM_CLASSES, aux_logits=False, init_weights=False)
        for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            setattr(network, name, _A({"Mixed_5b": 192, "Mixed_5c": 256, "Mixed_5d": 288}[name], pool_features=width))
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            setattr(network, name, _C(768, channels_7x7=width))
        network.Mixed_7b, network.Mixed_7c = _E1(1280), _E2(2048)
        network.fc = network.dropout = nn.Identity()
        network.transform_input = False
        self.network = network.eval().requires_grad_(False)

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        sized = functional.interpolate(pixels_B3HW, size=(SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False)
        features: torch.Tensor = self.network(2 * sized - 1)
        return features


def is_inception(state: Mapping[str, Any]) -> bool:
    return "Conv2d_1a_3x3.conv.weight" in state


def fid_inception(state: Mapping[str, torch.Tensor], path: str | Path) -> FidInception:
    """Fill the network with weights in pytorch-fid's layout; raises RecipeError that names what is missing or odd."""
    with torch.device("meta"):
        model = FidInception()
    wanted = {name: value for name, value in model.network.state_dict().items() if not name.endswith("tracked")}
    missing = [name for name in wanted if name not in state]
    if missing:
        raise RecipeError(f"{path}: the FID's Inception lacks {', '.join(missing[:3])} ({len(missing)} in all)")
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise RecipeError(f"{path}: {name} is {tuple(state[name].shape)}, the FID's is {tuple(value.shape)}")
    model.to_empty(device="cpu")
    model.network.load_state_dict({name: state[name].float() for name in wanted}, strict=False)
    return model.eval()
