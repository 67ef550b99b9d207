"""Reading Emu3's vision tokenizer into transformers' `Emu3VQVAE`: whole, or not at all.

transformers warns about weights that are missing and draws them at random, so a folder of another model, or BAAI's own
release, would give codes that mean nothing. Here every key has to be there, in its shape, and no other. The layouts are
in `vision_emu3_files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RecipeError
from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.tokenize.vision_emu3_files import Emu3Files, emu3_files
from tokenmill.tokenize.vision_emu3_names import as_port
from tokenmill.tokenize.vision_frames import WINDOW

if TYPE_CHECKING:
    import torch

_NAMED = 4
_TOLD = 300


def read_checkpoint(spec: str | Path) -> Any:
    """Read the model of a folder or hub name into float32, from safetensors only.

    Raises:
        RecipeError: no such folder or model, another kind of model, no safetensors, or keys that do not fit.
    """
    with without_progress_bar():
        files = emu3_files(spec)
    model = _empty(spec, files.config)
    weights = _weights(spec, files)
    _check_keys(spec, model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)
    if model.config.temporal_downsample_factor != WINDOW:
        frames = model.config.temporal_downsample_factor
        raise RecipeError(f"vision tokenizer {spec}: {frames} frames a window; only {WINDOW} are supported")
    return model


def _empty(spec: str | Path, described: Mapping[str, Any]) -> Any:
    """Build the network without memory for its weights, which are about to be replaced."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    try:
        config = Emu3VQVAEConfig(**described)
        with torch.device("meta"):
            return Emu3VQVAE._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"vision tokenizer {spec}: its config.json describes no network: {reason}") from error


def _weights(spec: str | Path, files: Emu3Files) -> dict[str, torch.Tensor]:
    """Read the tensors by the port's names, in its shapes, numbers with a fraction in float32."""
    import torch
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        for path, names in files.by_file.items():
            with safe_open(path, framework="pt") as opened:
                for name, inside in names.items():
                    tensor = as_port(name, opened.get_tensor(inside))
                    kept = torch.float32 if tensor.is_floating_point() else tensor.dtype
                    # a copy: what safetensors gives lies in the file, which may be replaced
                    found[name] = tensor.to(kept, copy=True, memory_format=torch.contiguous_format)
    except (OSError, SafetensorError) as error:
        told = " ".join(str(error).split())[:_TOLD]
        raise RecipeError(f"vision tokenizer {spec}: {path.name}: {told}") from error
    return found


def _check_keys(spec: str | Path, wanted: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise RecipeError naming the first keys, in the port's names, that are missing, too many or of another shape."""
    both = wanted.keys() & weights.keys()
    faults = {
        "missing": wanted.keys() - weights.keys(),
        "unexpected": weights.keys() - wanted.keys(),
        "of another shape": {name for name in both if wanted[name].shape != weights[name].shape},
    }
    told = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if told:
        raise RecipeError(f"vision tokenizer {spec}: its weights are not those of its config.json: {'; '.join(told)}")


def _some(keys: Iterable[str]) -> str:
    named = sorted(keys)
    return ", ".join(named[:_NAMED]) + (", …" if len(named) > _NAMED else "")
