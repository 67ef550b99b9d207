"""LPIPS (Zhang et al. 2018, arXiv:1801.03924): how different two pictures look to a network trained on photographs.

Features of AlexNet or VGG16 after five of their layers, each position's channels scaled to length one, squared
differences weighted channel by channel, averaged over positions, summed over layers. The architecture is torchvision's;
weights come from a file, because no package carries them. `lpips` (the package) would bring the linear weights but
fetches the network's from the web; reading files people already have costs these hundred lines.

Shapes: B pictures, H W pixels in -1..1, C channels of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tokenmill.errors import RecipeError
from tokenmill.tensor_file import read_tensors

Network = Literal["alex", "vgg"]
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""From -1..1 to what the networks saw in training: ImageNet's mean and deviation, for pictures in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    """Which layers of torchvision's `features` are looked at, how wide they are, the least side in pixels."""

    name: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    min_side_px: int


ARCHITECTURES: Mapping[Network, _Architecture] = {
    "alex": _Architecture(name="AlexNet", taps=(1, 4, 7, 9, 11), channels=(64, 192, 384, 256, 256), min_side_px=31),
    "vgg": _Architecture(name="VGG16", taps=(3, 8, 15, 22, 29), channels=(64, 128, 256, 512, 512), min_side_px=16),
}

# Written here because importing torchvision takes seconds. AlexNet: width, side, stride, padding, pooled after.
ALEX_CONVOLUTIONS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# What names end with in the layouts people have: torchvision's own, lpips's and taming's slices, with any prefix.
_FEATURE = re.compile(r"(?:^|\.)(?:features|slice\d+)\.(\d+)\.(weight|bias)$")
_LINEAR = re.compile(r"(?:^|\.)lins?\.?(\d)\.model\.[01]\.weight$")


class Lpips(nn.Module):
    """The distance of pictures, frozen; gradients pass through to the pictures."""

    def __init__(self, network: Network, features: nn.Sequential, linear: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.network, self.features = network, features
        self.min_side_px = ARCHITECTURES[network].min_side_px
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        for index, weights in enumerate(linear):
            self.register_buffer(f"linear{index}", weights.reshape(-1, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, first_B3HW: torch.Tensor, second_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the distances (B) of two batches in -1..1; 0 for equal pictures, about 0.7 for unrelated ones.

        Raises:
            RecipeError: pictures smaller than `min_side_px`.
        """
        if min(first_B3HW.shape[-2:]) < self.min_side_px:
            height, width = first_B3HW.shape[-2:]
            name = ARCHITECTURES[self.network].name
            raise RecipeError(
                f"LPIPS with {name} needs sides of {self.min_side_px} px or more (found {width}x{height})"
            )
        pairs = zip(self._units(first_B3HW), self._units(second_B3HW), strict=True)
        layers = [
            ((one - other).square() * self.get_buffer(f"linear{index}")).sum(1).mean((1, 2))
            for index, (one, other) in enumerate(pairs)
        ]
        return torch.stack(layers).sum(0)

    def _units(self, pixels_B3HW: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the five layers' features, (B, C, h, w), every position of length one."""
        hidden = (pixels_B3HW - self.get_buffer("shift")) / self.get_buffer("scale")
        taps = ARCHITECTURES[self.network].taps
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in taps:
                # The tiny constant keeps the gradient finite where every channel of a position is zero.
                yield hidden / ((hidden.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)


def load_lpips(path: str | Path, *, network: Literal["auto", "alex", "vgg"] = "auto") -> Lpips:
    """Open LPIPS from a file, or from a folder of files that together hold all weights.

    Args:
        path: safetensors, or a checkpoint that `torch.load(weights_only=True)` reads. Names may be those of lpips
            (`net.slice1.0.weight`, `lin0.model.1.weight`, `lins.0.…`), of taming-transformers, or of torchvision
            (`features.0.weight`); taming's `vgg.pth` and lpips's `alex.pth` hold the linear weights alone: put
            torchvision's file into the same folder.
        network: `auto` tells by the width of the second layer.

    Raises:
        RecipeError: no such file, none that opens, or weights are missing or of other shapes; names them.
    """
    state = _read_all(Path(path))
    linear = {int(m[1]): value for name, value in state.items() if (m := _LINEAR.search(name))}
    backbone = {f"{m[1]}.{m[2]}": value for name, value in state.items() if (m := _FEATURE.search(name))}
    found = _network(path, linear, backbone) if network == "auto" else network
    architecture = ARCHITECTURES[found]
    features = _features(found)
    wanted = {f"features.{name}": tuple(value.shape) for name, value in features.state_dict().items()}
    wanted |= {f"lin{index}.model.1.weight": (1, width, 1, 1) for index, width in enumerate(architecture.channels)}
    have = {f"features.{name}": value for name, value in backbone.items()}
    have |= {f"lin{index}.model.1.weight": value for index, value in linear.items()}
    _check(path, architecture, wanted, have)
    features.load_state_dict({name: backbone[name].float() for name in features.state_dict()}, assign=True)
    return Lpips(found, features, tuple(linear[index].float() for index in range(len(architecture.channels))))


def _features(network: Network) -> nn.Sequential:
    """The layers up to the last that is looked at, numbered as in torchvision, without memory for weights yet."""
    with torch.device("meta"):
        return nn.Sequential(*(_alex_layers() if network == "alex" else _vgg_layers()))


def _alex_layers() -> Iterator[nn.Module]:
    inner = 3
    for out, side, stride, padding, pooled in ALEX_CONVOLUTIONS:
        yield from (nn.Conv2d(inner, out, side, stride, padding), nn.ReLU())
        if pooled:
            yield nn.MaxPool2d(3, 2)
        inner = out


def _vgg_layers() -> Iterator[nn.Module]:
    inner = 3
    for number, widths in enumerate(VGG_WIDTHS):
        if number:
            yield nn.MaxPool2d(2, 2)
        for out in widths:
            yield from (nn.Conv2d(inner, out, 3, padding=1), nn.ReLU())
            inner = out


def _network(path: str | Path, linear: Mapping[int, torch.Tensor], backbone: Mapping[str, torch.Tensor]) -> Network:
    """Tell which network the weights are of."""
    if 1 in linear:
        return "alex" if linear[1].numel() == ARCHITECTURES["alex"].channels[1] else "vgg"
    if "0.weight" in backbone:
        return "alex" if backbone["0.weight"].shape[-1] == 11 else "vgg"
    raise RecipeError(f"{path}: no weights of LPIPS (none is called lin0.model.1.weight or features.0.weight)")


def _check(
    path: str | Path,
    architecture: _Architecture,
    wanted: Mapping[str, tuple[int, ...]],
    have: Mapping[str, torch.Tensor],
) -> None:
    missing = [name for name in wanted if name not in have]
    if missing:
        listed = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise RecipeError(
            f"{path}: LPIPS with {architecture.name} lacks {listed}; name a folder if its weights lie in two files"
        )
    wrong = [name for name, shape in wanted.items() if have[name].numel() != torch.Size(shape).numel()]
    if wrong:
        name = wrong[0]
        raise RecipeError(
            f"{path}: {name} is {tuple(have[name].shape)}, {architecture.name}'s is {wanted[name]}; another network?"
        )


def _read_all(path: Path) -> dict[str, torch.Tensor]:
    """Read a file, or all files of a folder; later names replace earlier ones."""
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise RecipeError(f"{path}: no weights of LPIPS here; name a file or a folder of {', '.join(SUFFIXES)}")
    return {name: value for file in files for name, value in read_tensors(file).items()}
