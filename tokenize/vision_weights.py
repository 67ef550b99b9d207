"""Weights of a released vision tokenizer by their names: from safetensors, or from a checkpoint of its training.

A checkpoint (`.ckpt`) is opened with `weights_only=True`: tensors and plain values, never code. A Lightning one holds
them under `state_dict`, beside those of losses and discriminator, which are left out. Where moving averages of the
weights (`model_ema.<name without dots>`) lie beside them, they are taken: the release was measured with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.errors import RecipeError
from tokenmill.tensor_file import read_tensors
from tokenmill.tokenize.vision_identity import own_names

if TYPE_CHECKING:
    import torch

_NAMED = 4  # keys that an error names


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the network's own tensors of a file, averages in the place of what they are averages of.

    Raises:
        RecipeError: the file cannot be read, or holds objects beside tensors.
    """
    try:
        found = read_tensors(path)
    except RecipeError as error:
        raise RecipeError(f"vision tokenizer {error}") from error
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


def _names(keys: set[str]) -> str:
    shown = ", ".join(sorted(keys)[:_NAMED])
    return shown if len(keys) <= _NAMED else f"{shown} and {len(keys) - _NAMED} more"
