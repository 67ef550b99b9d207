"""Small IBQ and FSQ tokenizers on disk, in the released layouts, with weights whose codes spread over the codebook.

A network of random weights maps most pictures to few codes. So `quant_conv` is fitted to some pictures: it whitens the
features of theirs, and codebook vectors of equal length in all directions are then about equally often the largest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from tokenmill.demo.photographs import photographs
from tokenmill.tokenize.preprocess import normalise
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vision_folder import vision_folder
from tokenmill.tokenize.vision_fsq import build_fsq
from tokenmill.tokenize.vision_ibq import build_ibq

IBQ_CODES = 131_072
NAMES = ("astronaut", "chelsea", "coffee", "china", "flower", "rocket")


def pictures(side: int, names: Sequence[str] = NAMES) -> NDArray[np.uint8]:
    """Return photographs as (B, side, side, 3)."""
    paths = {photograph.name: photograph.path for photograph in photographs()}
    return np.stack([
        np.asarray(Image.open(paths[name]).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        for name in names
    ])  # fmt: skip


def shape(levels: int, **changes: Any) -> dict[str, Any]:
    """Return a `ddconfig` of so many levels of 32 channels, the last with attention."""
    value = {"ch": 32, "ch_mult": [1] * levels, "num_res_blocks": 1, "attn_resolutions": [256 >> (levels - 1)]}
    value |= {"resolution": 256, "z_channels": 32, "in_channels": 3, "out_ch": 3, "double_z": False, "dropout": 0.0}
    return value | changes


def write_ibq(folder: Path, *, embed_dim: int = 8, levels: int = 5) -> Path:
    """Write an IBQ tokenizer of 131,072 codes as `config.yaml` and `model.safetensors`; returns the folder."""
    folder.mkdir(parents=True)
    config = {"ddconfig": shape(levels), "n_embed": IBQ_CODES, "embed_dim": embed_dim}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"beta": 0.25, "use_entropy_loss": True}))
    torch.manual_seed(7)
    found = vision_folder(folder)
    assert found is not None
    network = build_ibq(found)
    vectors = torch.randn(IBQ_CODES, embed_dim)
    network.quantize.embedding.weight.data = vectors / vectors.norm(dim=1, keepdim=True)
    return _fitted(folder, network, spread=1.0)


def write_fsq(folder: Path, levels: Sequence[int], *, depth: int = 4, bound: str = "paper") -> Path:
    """Write an FSQ tokenizer of so many levels a dimension as `config.json` and `model.safetensors`."""
    folder.mkdir(parents=True)
    config = {"model_type": "fsq", "levels": list(levels), "bound": bound, "ddconfig": shape(depth)}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(8)
    found = vision_folder(folder)
    assert found is not None
    return _fitted(folder, build_fsq(found), spread=0.8)


@torch.inference_mode()
def _fitted(folder: Path, network: Any, *, spread: float) -> Path:
    pixels = torch.from_numpy(np.moveaxis(normalise(pictures(128)), -1, 1).copy())
    features = network.encoder(pixels).movedim(1, -1).flatten(0, 2)
    mean = features.mean(0)
    _, scales, directions = torch.linalg.svd(features - mean, full_matrices=False)
    size = network.quant_conv.weight.shape[0]
    weight = directions[:size] / scales[:size, None] * len(features) ** 0.5 * spread
    network.quant_conv.weight.copy_(weight[..., None, None])
    network.quant_conv.bias.copy_(-weight @ mean)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    return folder


def load_ibq_of(path: str) -> Any:
    """A tokenizer of somebody else's: known by a name alone, so that nothing but itself tells how many codes it has."""
    return load_vision_tokenizer(path)
