"""Who a vision tokenizer is, from its files alone: hashing 6 MB takes 20 ms, building the model with torch 8 s.

The fingerprint covers what shapes codes: the weights (names, shapes, values in the precision they are used in), the
shape of the network, the rules below, precision and batch size. It is the same whether taken from a folder or from the
model built from it; a folder that holds anything unusual is left to the model.
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

SHIPPED = Path(__file__).parent / "weights" / "scenes"
RULES = {
    "version": 1,
    "pixels": "uint8 / 255, mean 0.5, deviation 0.5",
    "image": "one frame, features repeated to a window",
    "video": "independent windows of 4 frames in the batch dimension",
    "batch": "equal sizes, cut in order",
}
"""What shapes codes besides weights, precision and batch size; part of every fingerprint."""

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

PRECISIONS = ("float32", "bfloat16")
_KINDS: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_WEIGHTS = "model.safetensors"


def fingerprint_of_folder(folder: Path, *, dtype: str, batch_size: int) -> str | None:
    """Return the fingerprint of the tokenizer in a folder, or None where only the model itself can tell."""
    if dtype not in PRECISIONS or batch_size < 1:
        return None
    try:
        described = json.loads((folder / "config.json").read_bytes())
        config = {key: described[key] for key in SHAPE}
        data = memoryview((folder / _WEIGHTS).read_bytes())
        length = int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        weights = [(name, tensor_of(data[8 + length :], header[name], dtype)) for name in sorted(header)]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return fingerprint_of(config, weights, dtype=dtype, batch_size=batch_size)


def fingerprint_of(
    config: Mapping[str, Any], weights: Iterable[tuple[str, NDArray[np.float32]]], *, dtype: str, batch_size: int
) -> str:
    """Return the sha256 over the network's shape, the rules, precision, batch size, and the weights in their order."""
    described = {"config": dict(config), "rules": RULES, "dtype": dtype, "batch_size": batch_size}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in weights:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def tensor_of(data: memoryview, entry: Mapping[str, Any], dtype: str) -> NDArray[np.float32]:
    """Return one tensor as float32, rounded as it is when used in `dtype`."""
    start, end = entry["data_offsets"]
    raw: NDArray[Any] = np.frombuffer(data[start:end], dtype=_KINDS[entry["dtype"]])
    if len(raw) != math.prod(entry["shape"]):
        raise ValueError("a tensor of another size than its shape")
    values = (raw.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else raw.astype("<f4")
    return (_rounded(values) if dtype == "bfloat16" else values).reshape(entry["shape"])


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest bfloat16, ties to even, as torch does."""
    if not np.isfinite(values).all():
        raise ValueError("weights that are no numbers")
    bits = values.view("<u4")
    rounded: NDArray[np.float32] = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("<u4").view("<f4")
    return rounded
