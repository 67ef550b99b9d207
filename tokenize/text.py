"""Text tokenizers by name: what the vocabulary needs of one, and where third parties join.

A text tokenizer owns the ids 0 .. size-1 and knows nothing of markers: `<|endoftext|>` in a user's text is eleven
ordinary characters, never the padding id. A third party adds one in a file of its own, named by an entry point of the
group `tokenmill.text_tokenizers` whose target is called with the recipe's settings as keywords.

It may also have `encode_array(text)`, which gives the ids as a uint32 array: 50 million ids are 200 MB then, and 1.8 GB
as a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, RunError

ENTRY_POINT_GROUP = "tokenmill.text_tokenizers"

BUILT_IN: Mapping[str, str] = {
    "qwen": "tokenmill.tokenize.text_qwen:QwenTokenizer",
    "huggingface": "tokenmill.tokenize.text_huggingface:HuggingFaceTokenizer",
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


def checked_ids(tokenizer: TextTokenizer, name: str, text: str) -> NDArray[np.uint32]:
    """Encode a text and check every id against the vocabulary, so that no archive holds one that is none.

    Raises:
        RunError: the tokenizer called `name` gave an id it does not have: its own fault, not the text's.
    """
    encode_array = getattr(tokenizer, "encode_array", None)
    ids: NDArray[Any] = np.asarray(tokenizer.encode(text) if encode_array is None else encode_array(text))
    if not len(ids):
        return np.zeros(0, np.uint32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RunError(f"text tokenizer {name!r} gave {ids.dtype} of shape {ids.shape} for ids; wants whole numbers")
    if int(ids.min()) < 0 or int(ids.max()) >= tokenizer.size:
        found = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise RunError(f"text tokenizer {name!r} gave the id {found}; its vocabulary has 0 .. {tokenizer.size - 1}")
    return ids.astype(np.uint32, copy=False)


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
