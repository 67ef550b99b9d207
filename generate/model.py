"""An exported model and all that is needed to read its ids: weights, vocabulary, which vision tokenizer.

The trainer writes `tokenmill.json` beside the safetensors; without it nobody could tell which id is which code. So a
directory that lacks it is refused unless it is an Emu3 of transformers or of BAAI (emu3_layout.py), whose table of ids
is known; and so is one whose embedding has another number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.generate.emu3_layout import describe_emu3, emu3_kind, open_emu3
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

    folder = Path(path)
    description, kind = _described(folder)
    vocabulary = build_vocabulary(description["vocabulary"])
    expected = description.get("vocabulary_fingerprint", vocabulary.fingerprint)
    if expected != vocabulary.fingerprint:
        raise RecipeError(f"{path}: trained with vocabulary {expected[:16]}, this one is {vocabulary.fingerprint[:16]}")
    as_dtype = getattr(torch, dtype)
    model = _exported(folder, as_dtype) if kind is None else open_emu3(folder, kind, as_dtype)
    if model.config.vocab_size != vocabulary.size:
        raise RecipeError(f"{path}: the model has {model.config.vocab_size} ids, its vocabulary {vocabulary.size}")
    return ExportedModel(model=model.to(device).eval(), vocabulary=vocabulary, vision=description.get("vision", {}))


def describe_model(path: str | Path) -> dict[str, Any]:
    """Say what a folder holds without opening its weights: `vocabulary`, `vision`, and what else an export tells.

    Raises RecipeError for a folder that is no model.
    """
    return _described(Path(path))[0]


def _described(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a model's description and, of an Emu3 in a layout of others, its configuration."""
    kind = None if (folder / DESCRIPTION).exists() else _emu3_config(folder)
    return (read_description(folder) if kind is None else describe_emu3(folder, kind)), kind


def _exported(path: Path, dtype: Any) -> Any:
    from safetensors import SafetensorError

    from tokenmill.train.model import causal_class

    kind = causal_class(_config(path), str(path))
    try:
        with without_progress_bar():
            return kind.from_pretrained(path, use_safetensors=True, dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RecipeError(f"{path}: its weights cannot be opened: {str(error).splitlines()[0]}") from error


def _emu3_config(path: Path) -> dict[str, Any] | None:
    """Return the configuration of an Emu3 in a layout of others; None where that is not what lies there."""
    if not (path / "config.json").exists():
        return None
    config = _config(path)
    return None if emu3_kind(config) is None else config


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
