"""The model a tokenizer's training begins with: from scratch, from a trained `Emu3VQVAE`, or from an image model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenmill.errors import RecipeError
from tokenmill.settings_tokenizer import TokenizerShape, TokenizerTraining
from tokenmill.tokenize.vision_checkpoint import read_checkpoint
from tokenmill.train.vision_image_model import read_image_model
from tokenmill.train.vision_image_start import from_image_model
from tokenmill.train.vision_start import start_as_linear
from tokenmill.train.vision_start_pictures import check_shape


def build_model(settings: TokenizerTraining, config: Mapping[str, Any] | None = None) -> Any:
    """Return a trainable Emu3VQVAE; its batch norms stay in eval mode, where they are the identity.

    With `config`, that of a checkpoint, the weights are about to be replaced: `start` is not read. Raises RecipeError
    where it names nothing, or a model of another shape than `shape`.
    """
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(settings.seed)
    if config is not None:
        return Emu3VQVAE(Emu3VQVAEConfig.from_dict(dict(config))).eval()
    if isinstance(settings.start, str):
        model = Emu3VQVAE(Emu3VQVAEConfig(**(settings.shape or TokenizerShape()).model_dump()))
        if settings.start == "scratch":
            start_as_linear(model)
        else:
            check_shape(model.config)
        return model.eval()
    model = _started(Path(settings.start.path).expanduser())
    _check_shape(settings, model.config)
    return model.float().eval()


def _started(path: Path) -> Any:
    if not path.exists():
        raise RecipeError(f"tokenizer.start.from: {path}: nothing is there")
    if path.is_dir() and _is_emu3(path):
        return _pretrained(path)
    return from_image_model(read_image_model(path))


def _is_emu3(folder: Path) -> bool:
    config = folder / "config.json"
    return config.exists() and "temporal_downsample_factor" in config.read_text(encoding="utf-8")


def _pretrained(folder: Path) -> Any:
    """Open a trained tokenizer, Emu3's own included; raises RecipeError that names missing and strange tensors."""
    try:
        return read_checkpoint(folder)
    except RecipeError as error:
        raise RecipeError(f"tokenizer.start.from: {error}") from error


def _check_shape(settings: TokenizerTraining, config: Any) -> None:
    if settings.shape is None:
        return
    for name, wanted in settings.shape.model_dump().items():
        found = getattr(config, name)
        found = tuple(found) if isinstance(found, list) else found
        if found != wanted:
            raise RecipeError(
                f"tokenizer.shape.{name}: {wanted!r}, but the model of tokenizer.start has {found!r}; leave shape out"
            )
