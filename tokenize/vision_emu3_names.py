"""Emu3's vision tokenizer under two sets of names: those of BAAI's release and those of transformers' port.

They are one network. The port groups the levels and the middle (`down_block`, `up_block`, `middle_block`), puts the
norms of attention beside it, and has its four 1×1 convolutions as linear layers. Everything else, temporal layers,
spatial norms and codebook included, has one name. Facts from baaivision/Emu3, `emu3/tokenizer/modeling_emu3visionvq.py`
and `configuration_emu3visionvq.py`, and from transformers, `models/emu3/convert_emu3_weights_to_hf.py`. MoVQGAN image
models, which both descend from, have the release's names too (`train/vision_image_model.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

SHAPE = (
    "attn_resolutions",
    "base_channels",
    "channel_multiplier",
    "codebook_size",
    "double_latent",
    "embed_dim",
    "hidden_size",
    "in_channels",
    "latent_channels",
    "num_attention_heads",
    "num_res_blocks",
    "out_channels",
    "temporal_downsample_factor",
)
"""The configuration that shapes the network; what else transformers writes may change with its version."""

_RELEASED: Mapping[str, str] = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "double_z": "double_latent",
    "z_channels": "latent_channels",
}  # the others have one name
_NAMES = (
    (r"^encoder\.down\.", r"encoder.down_block.down."),
    (r"^decoder\.up\.", r"decoder.up_block.up."),
    (r"\.mid\.attn_1\.norm\.", r".middle_block.attn_norm."),
    (r"\.mid\.", r".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn_1|attn\.\d+)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
)
_LINEAR = re.compile(r"\.[qkv]_proj\.weight$|\.out_proj\.weight$")
_WIDEST = (256, (1, 2, 2, 4))  # what the release's class fills in for `ch` and `ch_mult`

Tensor = TypeVar("Tensor")


def port_name(released: str) -> str:
    """Return the port's name of a released weight; one that it shares, or that is neither's, stays."""
    for pattern, new in _NAMES:
        released = re.sub(pattern, new, released)
    return released


def as_port(name: str, tensor: Tensor) -> Tensor:
    """Return a weight in the port's shape: 1×1 convolutions of attention are matrices. `name` is the port's."""
    value: Any = tensor
    is_convolution = _LINEAR.search(name) is not None and value.ndim == 4 and tuple(value.shape[2:]) == (1, 1)
    matrix: Tensor = value[:, :, 0, 0] if is_convolution else value
    return matrix


def port_config(released: Mapping[str, Any]) -> dict[str, Any]:
    """Return the release's `config.json` in the port's terms; attention spans its deepest level with one head."""
    config = {_RELEASED.get(key, key): value for key, value in released.items()}
    width, multipliers = config.get("base_channels", _WIDEST[0]), config.get("channel_multiplier", _WIDEST[1])
    return config | {"hidden_size": width * multipliers[-1], "num_attention_heads": 1}
