"""Files of tensors by name, of whatever model: safetensors, or a checkpoint as far as it holds no code.

In the spine because filters, tokenizers, the trainer and evaluation all open such files, and none of these rooms may
import another for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RecipeError

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model")
_LONGEST = 160  # characters of a reason


def read_state(path: Path) -> dict[str, Any]:
    """Read what a file holds by name, taken out of the `state_dict` or `model` that training loops put around it.

    Anything but `.safetensors` is opened by `torch.load(weights_only=True)`, mapped where it can be.

    Raises:
        RecipeError: the file is missing, cut off, of another kind, or would run code of its own.
    """
    held: Any = _loaded(path)
    for wrapper in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not isinstance(held, Mapping):
        raise RecipeError(f"{path}: holds {type(held).__name__}, not tensors by name")
    return dict(held)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors among what `read_state` reads; raises as it does."""
    import torch

    return {name: value for name, value in read_state(path).items() if isinstance(value, torch.Tensor)}


def _loaded(path: Path) -> Any:
    import pickle
    import zipfile

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:  # whose advice is to run what the file holds
        told = (
            "it is no file of weights, or holds objects beside tensors, which would run code; write it as safetensors"
        )
        raise RecipeError(f"{path}: cannot be read as weights: {told}") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise RecipeError(f"{path}: cannot be read as weights: {why}") from error
