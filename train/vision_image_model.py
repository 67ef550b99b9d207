"""A MoVQGAN image model's file to tensors under `Emu3VQVAE`'s names, and the shape they tell.

Two layouts are in use: ai-forever/MoVQGAN's own (`encoder.down.0.block.0.conv1.weight`, `decoder.up.…`, attention as
1×1 convolutions) and that of diffusers' `VQModel` with spatial norm, which Kandinsky ships
(`encoder.down_blocks.0.resnets.0.…`, `decoder.up_blocks` counted from the coarse end, attention as linear layers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenmill.errors import RecipeError
from tokenmill.tensor_file import read_tensors
from tokenmill.tokenize.vision_emu3_names import as_port, port_name

_WHERE = "tokenizer.start.from"
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
_OF_DIFFUSERS = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
    (r"^encoder\.down_blocks\.(\d+)\.attentions\.(\d+)\.", r"encoder.down.\1.attn.\2."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r"decoder.up.\1.block.\2."),
    (r"^decoder\.up_blocks\.(\d+)\.attentions\.(\d+)\.", r"decoder.up.\1.attn.\2."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", r".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", r".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", r".mid.attn_1."),
    (r"\.(group_norm|spatial_norm)\.", r".norm."),
    (r"\.(to_q|query)\.", r".q."),
    (r"\.(to_k|key)\.", r".k."),
    (r"\.(to_v|value)\.", r".v."),
    (r"\.(to_out\.0|proj_attn)\.", r".proj_out."),
    (r"\.conv_shortcut\.", r".nin_shortcut."),
    (r"\.conv_norm_out\.", r".norm_out."),
)


@dataclass(frozen=True, slots=True)
class ImageModel:
    """Tensors under Emu3VQVAE's names (both quantizing convolutions still 2-d), and the shape of the network."""

    where: str
    tensors: Mapping[str, torch.Tensor]
    shape: Mapping[str, Any]


def read_image_model(path: Path) -> ImageModel:
    """Read an image model from a file, or from a folder as diffusers writes it.

    Raises:
        RecipeError: no weights there, code inside of them, or no MoVQGAN.
    """
    state = {
        _without_prefix(name): tensor.float()
        for name, tensor in _state(_file(path)).items()
        if _without_prefix(name).startswith(_PARTS)
    }
    if not state:
        raise RecipeError(f"{_WHERE}: {path}: holds no tensor of a MoVQGAN, such as encoder.conv_in.weight")
    tensors = emu3_names(state)
    return ImageModel(str(path), tensors, _shape(tensors, path))


def emu3_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename an image model's tensors of either layout; 1×1 convolutions of attention become matrices."""
    levels = 1 + max(
        (int(found[1]) for name in state if (found := re.match(r"decoder\.up_blocks\.(\d+)", name))), default=-1
    )
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in _OF_DIFFUSERS:
            name = re.sub(pattern, new, name)
        name = port_name(name)
        if levels:
            name = re.sub(r"^decoder\.up_block\.up\.(\d+)", lambda found: _counted_back(found[1], levels), name)
        renamed[name] = as_port(name, tensor)
    return renamed


def _counted_back(number: str, levels: int) -> str:
    return f"decoder.up_block.up.{levels - 1 - int(number)}"


def _without_prefix(name: str) -> str:
    """Drop what wrappers put before a name: `module.`, `model.`, `first_stage_model.`, …"""
    found = re.search(r"(?:^|\.)((?:encoder|decoder|quantize|quant_conv|post_quant_conv)\..+)$", name)
    before = name[: found.start(1)] if found else ""
    return found[1] if found and not re.search(r"ema|loss|discriminator", before) else name


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _FILES:
        if (path / name).exists():
            return path / name
    raise RecipeError(f"{_WHERE}: {path}: no weights in it; looked for {', '.join(_FILES)}")


def _state(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        return read_tensors(path)
    except RecipeError as error:
        raise RecipeError(f"{_WHERE}: {error}") from error


def _shape(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """Tell the network's shape from its tensors."""
    try:
        base = tensors["encoder.conv_in.weight"].shape[0]
        levels = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("encoder.down_block.down."))
        widths = [tensors[f"encoder.down_block.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
        blocks = 1 + max(int(name.split(".")[5]) for name in tensors if ".down.0.block." in name)
        codes, code_width = tensors["quantize.embedding.weight"].shape
        latent = tensors["encoder.conv_out.weight"].shape[0]
    except KeyError as error:
        raise RecipeError(f"{_WHERE}: {path}: lacks {error.args[0]}") from error
    except ValueError as error:
        raise RecipeError(f"{_WHERE}: {path}: has no levels such as encoder.down.0.block.0") from error
    if latent != code_width:
        raise RecipeError(
            f"{_WHERE}: {path}: {latent} latent channels, codes of {code_width}: Emu3VQVAE wants as many of both"
        )
    if any(width % base for width in widths):
        raise RecipeError(f"{_WHERE}: {path}: widths {widths} are no multiples of {base}")
    attended = sorted(
        {int(name.split(".")[3]) for name in tensors if re.match(r"encoder\.down_block\.down\.\d+\.attn\.", name)}
    )
    return {
        "base_channels": base,
        "channel_multiplier": [width // base for width in widths],
        "num_res_blocks": blocks,
        "attn_resolutions": attended,
        "hidden_size": widths[-1],
        "codebook_size": codes,
        "embed_dim": code_width,
        "latent_channels": latent,
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
    }  # fmt: skip
