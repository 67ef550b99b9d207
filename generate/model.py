"""An exported model and all that is needed to read its ids: weights, vocabulary, which vision tokenizer.

The trainer writes `tokenmill.json` beside the safetensors; without it nobody could tell which id is which code, so a
directory that lacks it, or whose embedding has another number of rows, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

DESCRIPTION = "tokenmill.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A causal language model in eval mode (`.model`, `.lm_head` as in transformers), and how to read it."""

    model: Any
    vocabulary: Vocabulary
    vision: Mapping[str, Any]


def load_model(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> ExportedModel:
    """Open an exported directory; raises RecipeError when it is none or its vocabulary does not fit."""
    import torch
    from safetensors import SafetensorError

    from tokenmill.train.model import causal_class

    description = read_description(path)
    vocabulary = build_vocabulary(description["vocabulary"])
    expected = description.get("vocabulary_fingerprint", vocabulary.fingerprint)
    if expected != vocabulary.fingerprint:
        raise RecipeError(f"{path}: trained with vocabulary {expected[:16]}, this one is {vocabulary.fingerprint[:16]}")
    kind = causal_class(_config(Path(path)), str(path))
    try:
        with without_progress_bar():
            model = kind.from_pretrained(path, use_safetensors=True, dtype=getattr(torch, dtype))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RecipeError(f"{path}: its weights cannot be opened: {str(error).splitlines()[0]}") from error
    if model.config.vocab_size != vocabulary.size:
        raise RecipeError(f"{path}: the model has {model.config.vocab_size} ids, its vocabulary {vocabulary.size}")
    return ExportedModel(model=model.to(device).eval(), vocabulary=vocabulary, vision=description.get("vision", {}))


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: its config.json cannot be read ({error})") from error
    return config


def read_description(path: str | Path) -> dict[str, Any]:
    """Read `tokenmill.json` of an exported model."""
    file = Path(path) / DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: not an exported tokenmill model ({error})") from error
    if not isinstance(description, dict) or "vocabulary" not in description:
        raise RecipeError(f"{file}: names no vocabulary")
    return description
