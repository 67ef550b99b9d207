"""Weights of a released vision tokenizer by their names: from safetensors, or from a checkpoint of its training.

A checkpoint (`.ckpt`) is opened with `weights_only=True`: tensors and plain values, never code. A Lightning one holds
them under `state_dict`, beside those of losses and discriminator, which are left out. Where moving averages of the
weights (`model_ema.<name without dots>`) lie beside them, they are taken: the release was measured with them.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_identity import own_names

if TYPE_CHECKING:
    import torch

_NAMED = 4  # keys that an error names


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the network's own tensors of a file, averages in the place of what they are averages of.

    Raises:
        RecipeError: the file cannot be read, or holds objects beside tensors.
    """
    found = _checkpoint(path) if path.suffix == ".ckpt" else _safetensors(path)
    return {name: found[held] for name, held in own_names(found).items()}


def load_into(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Put weights into a network.

    Raises:
        RecipeError: names that are missing or that the network does not have, or tensors of another shape.
    """
    wanted = model.state_dict()
    missing, unknown = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    if missing or unknown:
        told = [f"{what} {_names(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise RecipeError(f"{where}: these are not the weights of what its configuration says: {'; '.join(told)}")
    for name, value in wanted.items():
        if value.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, its configuration says {tuple(value.shape)}"
            raise RecipeError(f"{where}: {name} has shape {shapes}")
    model.load_state_dict(dict(weights), assign=True)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, torch.Tensor] = load_file(path)
        return found
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"vision tokenizer {path}: {error}") from error


def _checkpoint(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        told = "holds objects beside tensors, which are not loaded; write its tensors as model.safetensors"
        raise RecipeError(f"vision tokenizer {path}: {told}") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise RecipeError(f"vision tokenizer {path}: {str(error).splitlines()[0]}") from error
    state = held.get("state_dict", held) if isinstance(held, dict) else None
    if not isinstance(state, dict):
        raise RecipeError(f"vision tokenizer {path}: holds no tensors by name")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _names(keys: set[str]) -> str:
    shown = ", ".join(sorted(keys)[:_NAMED])
    return shown if len(keys) <= _NAMED else f"{shown} and {len(keys) - _NAMED} more"
