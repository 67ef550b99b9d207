"""The ranks of Qwen's byte pairs from a file: a tiktoken, or the `tokenizer.json` that it was converted to.

A whole Emu3 of transformers comes with the latter alone. Written back as a tiktoken it is the released file byte for
byte, so a vocabulary has one fingerprint whichever of both it was read from.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from tokenmill.errors import RecipeError

NUM_RANKS = 151_643


def tiktoken_content(path: Path) -> bytes:
    """Read a file of ranks as the lines of a tiktoken; raises RecipeError where it can't be read or holds none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read the vocabulary file {path}: {error.strerror}") from error
    return _converted(content, path) if content[:1] == b"{" else content


def _converted(content: bytes, path: Path) -> bytes:
    from tokenmill.tokenize.token_meanings import byte_letters

    try:
        table = json.loads(content)["model"]["vocab"]
        letters = byte_letters()
        ranks = {index: bytes(letters[letter] for letter in token) for token, index in _plain(table)}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path}: no byte-level tokenizer ({type(error).__name__}: {error})") from error
    return b"".join(b"%s %d\n" % (base64.b64encode(token), index) for index, token in sorted(ranks.items()))


def _plain(table: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the tokens of text; markers and codes stand behind them."""
    return [(token, index) for token, index in table.items() if index < NUM_RANKS]
