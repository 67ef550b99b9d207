"""Encoder and decoder of VQGAN (Esser et al. 2021, arXiv 2012.09841), as IBQ and Emu3.5's tokenizer use them.

Convolutional levels, each halving the sides; at the middle two residual blocks around attention over the whole picture.
Modules are named as released state dicts name them (`encoder.down.0.block.1.conv2.weight`), so weights load by name.
Attention never holds the matrix of positions × positions: at 1024² and 16×16 that would be 67 MB a picture and layer.

Shapes: B pictures, C channels, H W pixels, h w codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tokenmill.errors import RecipeError

_GROUPS = 32  # of every group norm: channels are multiples of it
_LISTS = ("ch_mult", "attn_resolutions")
_IGNORED = {"dropout", "in_channels", "out_ch", "double_z", "resamp_with_conv", "give_pre_end", "attn_type"}


@dataclass(frozen=True, kw_only=True)
class VqganShape:
    """The shape of both networks, by the names of the released `ddconfig`.

    Attributes:
        ch: channels of the first level; ch_mult: multiples of it, a level each.
        attn_resolutions: levels that have attention, as the side they have at training `resolution`.
        z_channels: channels between encoder and decoder.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int

    @property
    def spatial_factor(self) -> int:
        """Pixels of a code's side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return [self.ch * multiple for multiple in self.ch_mult]

    @property
    def has_attention(self) -> list[bool]:
        """Say of each level whether its blocks are followed by attention."""
        return [self.resolution // 2**level in self.attn_resolutions for level in range(len(self.ch_mult))]


def vqgan_shape(config: Mapping[str, Any], where: str) -> VqganShape:
    """Read a `ddconfig`.

    Raises:
        RecipeError: keys that are missing or unknown, and what no released network has.
    """
    given = config.get("ddconfig")
    if not isinstance(given, Mapping):
        raise RecipeError(f"{where}: ddconfig is missing, the shape of encoder and decoder")
    fixed = {"in_channels": 3, "out_ch": 3, "double_z": False, "resamp_with_conv": True, "give_pre_end": False}
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise RecipeError(f"{where}: ddconfig.{key} is {given[key]!r}; only {value!r} is supported")
    wanted = set(VqganShape.__dataclass_fields__)
    settings: dict[str, Any] = {key: value for key, value in given.items() if key not in _IGNORED}
    if settings.keys() != wanted:
        wrong = ", ".join(sorted(settings.keys() ^ wanted))
        raise RecipeError(f"{where}: ddconfig needs {', '.join(sorted(wanted))}; missing or unknown: {wrong}")
    for key, value in settings.items():
        numbers = value if key in _LISTS and isinstance(value, list) else [value]
        if (key in _LISTS) != isinstance(value, list) or not all(type(one) is int and one > 0 for one in numbers):
            what = "a list of whole numbers" if key in _LISTS else "a whole number"
            raise RecipeError(f"{where}: ddconfig.{key} must be {what} above 0, found {value!r}")
    shape = VqganShape(**settings | {key: tuple(settings[key]) for key in _LISTS})
    if not shape.ch_mult or any(channels % _GROUPS for channels in shape.channels):
        raise RecipeError(f"{where}: {shape.ch} × {list(shape.ch_mult)} channels are no multiples of {_GROUPS}")
    return shape


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in -1..1 to features (B, z_channels, h, w)."""

    def __init__(self, shape: VqganShape) -> None:
        super().__init__()
        channels = [shape.ch, *shape.channels]
        last = len(shape.ch_mult) - 1
        self.conv_in = nn.Conv2d(3, shape.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, has_attention in enumerate(shape.has_attention):
            stage = _Level(channels[level], channels[level + 1], shape.num_res_blocks, attention=has_attention)
            if level < last:
                stage.downsample = _Resample(channels[level + 1], stride=2)
            self.down.append(stage)
        self.mid = _Middle(channels[-1])
        self.norm_out = _norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], shape.z_channels, 3, padding=1)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(pixels_BCHW)
        for number in range(len(self.down)):
            level: Any = self.down[number]
            hidden = level(hidden)
            if number + 1 < len(self.down):  # a column and a row of zeros behind, none before
                hidden = level.downsample.conv(functional.pad(hidden, (0, 1, 0, 1)))
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(hidden))))
        return result


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) to pixels (B, 3, H, W); `up` counts levels as the encoder does."""

    def __init__(self, shape: VqganShape) -> None:
        super().__init__()
        channels = shape.channels
        above = [*channels[1:], channels[-1]]
        self.conv_in = nn.Conv2d(shape.z_channels, channels[-1], 3, padding=1)
        self.mid = _Middle(channels[-1])
        self.up = nn.ModuleList()
        for level, has_attention in enumerate(shape.has_attention):
            stage = _Level(above[level], channels[level], shape.num_res_blocks + 1, attention=has_attention)
            if level:
                stage.upsample = _Resample(channels[level], stride=1)
            self.up.append(stage)
        self.norm_out = _norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        hidden = self.mid(self.conv_in(features_BChw))
        for number in reversed(range(len(self.up))):
            level: Any = self.up[number]
            hidden = level(hidden)
            if number:
                hidden = level.upsample.conv(functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(hidden)))
        return result


class _Level(nn.Module):
    """Residual blocks of one level, each followed by attention where the level has it."""

    def __init__(self, taken: int, given: int, blocks: int, *, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResidualBlock(given if number else taken, given) for number in range(blocks))
        self.attn = nn.ModuleList(_Attention(given) for _ in range(blocks if attention else 0))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.block):
            hidden = block(hidden)
            if len(self.attn):
                hidden = self.attn[number](hidden)
        return hidden


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(channels, channels)
        self.attn_1 = _Attention(channels)
        self.block_2 = _ResidualBlock(channels, channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block_2(self.attn_1(self.block_1(hidden)))
        return result


class _Resample(nn.Module):
    """The convolution of a change of size, `downsample.conv` or `upsample.conv`."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=0 if stride == 2 else 1)


class _ResidualBlock(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(taken), nn.Conv2d(taken, given, 3, padding=1)
        self.norm2, self.conv2 = _norm(given), nn.Conv2d(given, given, 3, padding=1)
        if taken != given:
            self.nin_shortcut = nn.Conv2d(taken, given, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        changed = self.conv1(functional.silu(self.norm1(hidden)))
        changed = self.conv2(functional.silu(self.norm2(changed)))
        result: torch.Tensor = (self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden) + changed
        return result


class _Attention(nn.Module):
    """One head over all positions of a picture, scaled by channels ** -0.5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_BChw: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden_BChw)
        query, key, value = (
            one(normed).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for one in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        result: torch.Tensor = hidden_BChw + self.proj_out(mixed.transpose(1, 2).reshape(hidden_BChw.shape))
        return result


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)
