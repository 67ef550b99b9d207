"""Reading an `Emu3VQVAE` checkpoint: whole, or not at all.

transformers warns about weights that are missing and draws them at random, so a folder of another model would give
codes that mean nothing. Here every key has to be there, in its shape, and no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.tokenize.vision_frames import WINDOW

KIND = "emu3_vqgan"
_NAMED = 4
_TOLD = 300


def read_checkpoint(spec: str | Path) -> Any:
    """Read the model of a folder or hub name into float32, from safetensors only.

    Raises:
        RecipeError: no such folder or model, another kind of model, no safetensors, or keys that do not fit.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    options: dict[str, Any] = {"use_safetensors": True, "dtype": "float32", "attn_implementation": "sdpa"}
    try:
        described, _ = Emu3VQVAEConfig.get_config_dict(str(spec))
        _check_kind(spec, described)
        with without_progress_bar():
            model, found = Emu3VQVAE.from_pretrained(
                str(spec), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise RecipeError(f"vision tokenizer {spec}: {' '.join(str(error).split())[:_TOLD]}") from error
    _check_keys(spec, found)
    if model.config.temporal_downsample_factor != WINDOW:
        frames = model.config.temporal_downsample_factor
        raise RecipeError(f"vision tokenizer {spec}: {frames} frames a window; only {WINDOW} are supported")
    return model


def _check_kind(spec: str | Path, described: dict[str, Any]) -> None:
    kind = described.get("model_type")
    if described and kind != KIND:
        raise RecipeError(
            f"vision tokenizer {spec}: its config.json describes a model of type {kind!r}, not {KIND!r}, "
            "transformers' Emu3VQVAE"
        )


def _check_keys(spec: str | Path, found: dict[str, Any]) -> None:
    """Raise RecipeError naming the first keys that are missing, too many or of another shape."""
    faults = {
        "missing": sorted(found.get("missing_keys", ())),
        "unexpected": sorted(found.get("unexpected_keys", ())),
        "of another shape": sorted(str(key[0]) for key in found.get("mismatched_keys", ())),
    }
    told = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if told:
        raise RecipeError(f"vision tokenizer {spec}: its weights are not those of its config.json: {'; '.join(told)}")
    if found.get("error_msgs"):
        raise RecipeError(f"vision tokenizer {spec}: {found['error_msgs'][0]}")


def _some(keys: Iterable[str]) -> str:
    named = list(keys)
    return ", ".join(named[:_NAMED]) + (", …" if len(named) > _NAMED else "")
