"""Who a vision tokenizer is, from its files alone: hashing 6 MB takes 20 ms, building the model with torch 8 s.

The fingerprint covers what shapes codes: the weights (names, shapes, values), the shape of the network, the rules
below, precision, batch size and whether the networks are compiled. It is the same whether taken from a folder or from
the model built from it; a folder that holds anything unusual is left to the model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.tokenize.vision_options import VisionOptions

SHIPPED = Path(__file__).parent / "weights" / "scenes"
RULES = {
    "version": 1,
    "pixels": "uint8 / 255, mean 0.5, deviation 0.5",
    "image": "one frame, features repeated to a window",
    "video": "independent windows of 4 frames in the batch dimension",
    "batch": "equal sizes, cut in order",
}
"""What shapes codes besides weights, precision and batch size; part of every fingerprint."""

HALF_RULES = {"half": "2-d networks in half precision, temporal layers and search in float32"}
"""What is said besides where precision is lower than float32."""

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

_KINDS: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_WEIGHTS = "model.safetensors"


def fingerprint_of_folder(folder: Path, options: VisionOptions) -> str | None:
    """Return the fingerprint of the tokenizer in a folder, or None where only the model itself can tell."""
    try:
        described = json.loads((folder / "config.json").read_bytes())
        config = {key: described[key] for key in SHAPE}
        data = memoryview((folder / _WEIGHTS).read_bytes())
        length = int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        weights = [(name, tensor_of(data[8 + length :], header[name])) for name in sorted(header)]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return fingerprint_of(config, weights, options)


def fingerprint_of(
    config: Mapping[str, Any], weights: Iterable[tuple[str, NDArray[np.float32]]], options: VisionOptions
) -> str:
    """Return the sha256 over the network's shape, the rules, precision, batch size, and the weights in their order."""
    rules = RULES if options.dtype == "float32" else {**RULES, **HALF_RULES}
    described = {"config": dict(config), "rules": rules, **options.identity}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in weights:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def tensor_of(data: memoryview, entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return one tensor as float32."""
    start, end = entry["data_offsets"]
    raw: NDArray[Any] = np.frombuffer(data[start:end], dtype=_KINDS[entry["dtype"]])
    if len(raw) != math.prod(entry["shape"]):
        raise ValueError("a tensor of another size than its shape")
    values = (raw.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else raw.astype("<f4")
    return values.reshape(entry["shape"])
