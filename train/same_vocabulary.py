"""Whether a model's ids and a plan's mean the same: compared by meaning, since files move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary


def is_same_vocabulary(spec: Mapping[str, Any], vocabulary: Vocabulary) -> bool:
    """Say whether a vocabulary's description means the same ids, wherever its files lie.

    Raises RecipeError where its files are gone and the descriptions differ.
    """
    return dict(spec) == vocabulary.spec or build_vocabulary(spec).fingerprint == vocabulary.fingerprint


def described(spec: Mapping[str, Any]) -> str:
    """Name a vocabulary by its description, on one line."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in sorted(spec.items())) + "}"
