"""The text half of the Emu3 vocabulary: Qwen's byte-level BPE, ids 0 .. 151,642.

The ranks come from a local `qwen.tiktoken` (2.5 MB, never committed); the split expression and the NFC normalisation
are those of Qwen's released tokenizer. The port in transformers splits with GPT-2's expression, which gives other ids
wherever punctuation meets letters or line breaks (`foo.bar/baz`, `?\\n\\n`, `I'M`), so its converter is no substitute.

Any text can be encoded: long ones in pieces (text_cuts.py), a million blanks without overflowing the stack of the
library's regular expressions, whose panic no `except Exception` catches, a million marks without waiting (text_nfc.py).
What cannot be cut is one word of the expression; such a word of over 8 MiB is refused, at 46 bytes of memory a byte.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.qwen_ranks import NUM_RANKS, tiktoken_content
from tokenmill.tokenize.text_cuts import QWEN_CUTS, check_length, cut, runs_apart
from tokenmill.tokenize.text_nfc import nfc

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


RELEASED_RANKS = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
"""sha256 of the ranks of Qwen's released file: a line of base64 and rank each, in the order of the ranks."""


class QwenTokenizer:
    """Qwen's BPE over a `qwen.tiktoken` file; special tokens are never read from text.

    Args:
        path: the file, or the `tokenizer.json` of an Emu3 of transformers, of which the ranks are taken.
        ranks_sha256: digest of its ranks, which has to be named where they are not those Qwen released.

    Raises:
        RecipeError: the file is missing or is another model's (not exactly the ranks 0 .. 151,642, or not these).
    """

    size = NUM_RANKS

    def __init__(self, path: str | Path, ranks_sha256: str = RELEASED_RANKS) -> None:
        self._path, self._ranks_sha256 = str(path), ranks_sha256
        content = tiktoken_content(Path(path))
        ranks = _parse(content, self._path)
        _check_ranks(ranks, self._path, ranks_sha256)
        self._encoding = _encoding(SPLIT, ranks)
        self.fingerprint = hashlib.sha256(b"qwen nfc " + SPLIT.encode() + content).hexdigest()

    @property
    def settings(self) -> Mapping[str, Any]:
        named = {} if self._ranks_sha256 == RELEASED_RANKS else {"ranks_sha256": self._ranks_sha256}
        return {"path": self._path, **named}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """Give the ids of a text of any length; raises SampleError `unsplittable` for one word of over 8 MiB."""
        ids = array("I")
        for piece in cut(text, QWEN_CUTS):
            for part, is_run in runs_apart(piece):
                ids.extend(self._encoded(nfc(part), is_run))
        return np.frombuffer(ids, dtype=np.uint32) if ids else np.zeros(0, np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._encoding.decode([int(index) for index in ids], errors="replace")
        return text

    def token_bytes(self, index: int) -> bytes:
        """Give the bytes that an id stands for."""
        found: bytes = self._encoding.decode_single_token_bytes(index)
        return found

    def _encoded(self, part: str, is_run: bool) -> list[int]:
        check_length(part)
        encoding = self._run_encoding if is_run else self._encoding
        ids: list[int] = encoding.encode_ordinary(part)
        return ids

    @cached_property
    def _run_encoding(self) -> Any:
        """The same ranks with an expression that takes a run of spaces as one; few processes ever need it."""
        return _encoding(r"\s+", _parse(tiktoken_content(Path(self._path)), self._path))


def _encoding(split: str, ranks: Mapping[bytes, int]) -> Any:
    import tiktoken

    return tiktoken.Encoding("qwen", pat_str=split, mergeable_ranks=dict(ranks), special_tokens={})


def ranks_digest(path: Path) -> dict[str, str]:
    """Give the settings by which QwenTokenizer takes the ranks of a file, whosever they are.

    Raises RecipeError where they are not exactly as many as Qwen's.
    """
    found = _digest(_parse(tiktoken_content(path), str(path)))
    return {} if found == RELEASED_RANKS else {"ranks_sha256": found}


def _parse(content: bytes, path: str) -> dict[bytes, int]:
    try:
        pairs = (line.split() for line in content.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise RecipeError(f"{path} is not a tiktoken file (lines of base64 and rank): {error}") from error
    if sorted(ranks.values()) != list(range(NUM_RANKS)):
        raise RecipeError(f"{path} holds {len(ranks)} ranks; Qwen's vocabulary holds exactly 0 .. {NUM_RANKS - 1}")
    return ranks


def _check_ranks(ranks: Mapping[bytes, int], path: str, expected: str) -> None:
    found = _digest(ranks)
    if found != expected:
        whose = "Qwen released" if expected == RELEASED_RANKS else "ranks_sha256 names"
        named = f"ranks_sha256: {found}"
        raise RecipeError(f"{path} holds other ranks than {whose}; if these are meant, name them: {named}")


def _digest(ranks: Mapping[bytes, int]) -> str:
    found = hashlib.sha256()
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        found.update(b"%s %d\n" % (base64.b64encode(token), rank))
    return found.hexdigest()
