"""Text tokenizers by name: what the vocabulary needs of one, and where third parties join.

A text tokenizer owns the ids 0 .. size-1 and knows nothing of markers: `<|endoftext|>` in a user's text is eleven
ordinary characters, never the padding id. A third party adds one in a file of its own, named by an entry point of the
group `tokenmill.text_tokenizers` whose target is called with the recipe's settings as keywords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from tokenmill.errors import RecipeError

ENTRY_POINT_GROUP = "tokenmill.text_tokenizers"

BUILT_IN: Mapping[str, str] = {
    "qwen": "tokenmill.tokenize.text_qwen:QwenTokenizer",
    "bytes": "tokenmill.tokenize.text_bytes:ByteTokenizer",
}


class TextTokenizer(Protocol):
    """Text to ids 0 .. size-1 and back."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that determines the ids."""

    @property
    def size(self) -> int:
        """The number of ids."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The keywords that build it again."""

    def encode(self, text: str) -> list[int]:
        """Give the ids of the text; surface forms of special tokens are ordinary text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of the ids; broken UTF-8 becomes U+FFFD."""


def text_tokenizer_names() -> list[str]:
    """List every name that `build_text_tokenizer` knows."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def build_text_tokenizer(name: str, settings: Mapping[str, Any]) -> TextTokenizer:
    """Build the tokenizer of that name; raises RecipeError for an unknown name or setting."""
    factory = _factory(name)
    try:
        tokenizer: TextTokenizer = factory(**settings)
    except TypeError as error:
        raise RecipeError(f"text tokenizer {name!r} does not take {sorted(settings)}: {error}") from error
    return tokenizer


def _factory(name: str) -> Any:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return point.load()
    raise RecipeError(f"no text tokenizer {name!r}; there are {', '.join(text_tokenizer_names())}")
