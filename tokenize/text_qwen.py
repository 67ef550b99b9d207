"""The text half of the Emu3 vocabulary: Qwen's byte-level BPE, ids 0 .. 151,642.

The ranks come from a local `qwen.tiktoken` (2.5 MB, never committed); the split expression and the NFC normalisation
are those of Qwen's released tokenizer. The port in transformers splits with GPT-2's expression, which gives other ids
wherever punctuation meets letters or line breaks (`foo.bar/baz`, `?\\n\\n`, `I'M`), so its converter is no substitute.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError

NUM_RANKS = 151_643
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class QwenTokenizer:
    """Qwen's BPE over a `qwen.tiktoken` file; special tokens are never read from text.

    Raises:
        RecipeError: the file is missing or is another model's (not exactly the ranks 0 .. 151,642).
    """

    size = NUM_RANKS

    def __init__(self, path: str | Path) -> None:
        import tiktoken

        self._path = str(path)
        content = _read(Path(path))
        ranks = _parse(content, self._path)
        self._encoding: Any = tiktoken.Encoding("qwen", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
        self.fingerprint = hashlib.sha256(b"qwen nfc " + SPLIT.encode() + content).hexdigest()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"path": self._path}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoding.encode_ordinary(unicodedata.normalize("NFC", text))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._encoding.decode([int(index) for index in ids], errors="replace")
        return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read the vocabulary file {path}: {error.strerror}") from error


def _parse(content: bytes, path: str) -> dict[bytes, int]:
    try:
        pairs = (line.split() for line in content.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise RecipeError(f"{path} is not a tiktoken file (lines of base64 and rank): {error}") from error
    if sorted(ranks.values()) != list(range(NUM_RANKS)):
        raise RecipeError(f"{path} holds {len(ranks)} ranks; Qwen's vocabulary holds exactly 0 .. {NUM_RANKS - 1}")
    return ranks
