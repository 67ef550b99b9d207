"""Who an IBQ or FSQ tokenizer is: its fingerprint, from its files, without torch where they are safetensors.

The fingerprint covers the weights by name in float32, the settings that shape the network, the rules below, precision
and batch size. The same weights have the same one as a checkpoint and as safetensors; 1.8 GB take a core under 2 s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_fingerprint import tensor_of
from tokenmill.tokenize.vision_folder import VisionFolder
from tokenmill.tokenize.vision_options import VisionOptions

RULES = {
    "version": 1,
    "pixels": "uint8 / 255, mean 0.5, deviation 0.5",
    "video": "frame by frame",
    "batch": "equal sizes, cut in order",
    "quantizer": "float32",
}
"""What shapes codes besides weights, precision and batch size; part of every fingerprint."""

_SHAPE = ("ddconfig", "n_embed", "embed_dim", "levels", "bound")  # what else stands there is about training
_AVERAGE = "model_ema."
_LEFT_OUT = ("loss.", "discriminator.", _AVERAGE)


def own_names(names: Iterable[str]) -> dict[str, str]:
    """Map the network's own names to those under which a file holds them: moving averages where there are any."""
    held = set(names)
    own = (name for name in held if not name.startswith(_LEFT_OUT))
    averages = {name: f"{_AVERAGE}{name.replace('.', '')}" for name in own}
    return {name: average if average in held else name for name, average in averages.items()}


def fingerprint_of_pictures(folder: VisionFolder, options: VisionOptions) -> str:
    """Return the sha256 over kind, shape, rules, precision, batch size and weights; raises RecipeError."""
    described = {
        "kind": folder.kind,
        "config": {key: value for key, value in folder.config.items() if key in _SHAPE},
        "rules": RULES,
        **options.identity,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in _values(folder.weights):
        digest.update(f"{name} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _values(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the network's own weights in float32, by name."""
    if path.suffix == ".ckpt":
        from tokenmill.tokenize.vision_weights import read_weights

        yield from ((name, value.float().numpy()) for name, value in sorted(read_weights(path).items()))
        return
    try:
        data = np.memmap(path, np.uint8, "r").data
        behind = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:behind]))
        header.pop("__metadata__", None)
        for name, held in sorted(own_names(header).items()):
            yield name, tensor_of(data[behind:], header[held])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"vision tokenizer {path}: not whole safetensors of floats ({error})") from error
