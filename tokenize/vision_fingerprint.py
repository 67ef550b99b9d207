"""Who a vision tokenizer is, from its files alone: hashing 6 MB takes 20 ms, building the model with torch 8 s.

The fingerprint covers what shapes codes: the weights (names, shapes, values), the shape of the network, the rules
below, precision, batch size and whether the networks are compiled. It is the same whether taken from a folder or from
the model built from it; a folder that holds anything unusual is left to the model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_emu3_files import Emu3Files, emu3_files, safetensors_header
from tokenmill.tokenize.vision_emu3_names import SHAPE, as_port
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

_KINDS: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),  # how many batches a batch norm has seen
}


def fingerprint_of_folder(folder: Path, options: VisionOptions) -> str | None:
    """Return the fingerprint of the tokenizer in a folder, or None where only the model itself can tell."""
    try:
        files = emu3_files(folder) if folder.is_dir() else None
        if files is None or files.config.keys() != set(SHAPE):
            return None
        return fingerprint_of(files.config, _weights(files), options)
    except (RecipeError, OSError, KeyError, TypeError, ValueError):
        return None


def _weights(files: Emu3Files) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the weights in the order of the port's names and in its shapes."""
    opened = {path: (safetensors_header(path), np.memmap(path, np.uint8, "r").data) for path in files.by_file}
    for name, (path, inside) in sorted(files.held.items()):
        header, data = opened[path]
        behind = 8 + int.from_bytes(data[:8], "little")
        yield name, as_port(name, tensor_of(data[behind:], header[inside]))


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
