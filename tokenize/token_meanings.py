"""What every id of a vocabulary stands for, so that ids of two vocabularies can be told to be the same token.

A token of text is its bytes, whatever alphabet its file writes them in (byte-level BPE has letters for bytes,
SentencePiece a bar for a blank); one that no text gives, such as a marker, is its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.tokenize.text_bytes import ByteTokenizer
from tokenmill.tokenize.text_huggingface import FILE, HuggingFaceTokenizer, read_tokenizer
from tokenmill.tokenize.text_qwen import QwenTokenizer
from tokenmill.tokenize.vocabulary import Vocabulary

_BLANK = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Meaning:
    """A token: the bytes of a text, or the name of one that stands in no text."""

    content: bytes
    is_named: bool = False


def meanings_of(vocabulary: Vocabulary) -> dict[int, Meaning]:
    """Return what the ids of a vocabulary stand for, those apart of which nothing is known.

    Raises RecipeError for a text tokenizer whose tokens cannot be listed.
    """
    found = dict(_text_meanings(vocabulary))
    for index in range(vocabulary.text.size, vocabulary.size):
        found[index] = Meaning(vocabulary.describe(index).encode(), is_named=True)
    return found


def meanings_of_model(path: str) -> dict[int, Meaning] | None:
    """Return what the ids of a model's tokenizer stand for; None where the model comes without one."""
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).exists() for name in (FILE, "tokenizer.model", "vocab.json")):
        return None
    return dict(_file_meanings(json.loads(read_tokenizer(path))))


def _text_meanings(vocabulary: Vocabulary) -> Iterator[tuple[int, Meaning]]:
    text = vocabulary.text
    if isinstance(text, ByteTokenizer):
        return ((index, Meaning(bytes([index]))) for index in range(text.size))
    if isinstance(text, QwenTokenizer):
        return ((index, Meaning(text.token_bytes(index))) for index in range(text.size))
    if isinstance(text, HuggingFaceTokenizer):
        return _file_meanings(text.description)
    raise RecipeError(
        f"vocabulary {vocabulary.name}: its text tokenizer does not tell its tokens; set model.rows to ids"
    )


def _file_meanings(description: Mapping[str, Any]) -> Iterator[tuple[int, Meaning]]:
    """Yield the ids of a `tokenizer.json` and what they stand for; added tokens last, they go before."""
    letters = byte_letters() if _is_byte_level(description) else {}
    table = description["model"].get("vocab") or {}
    rows = table.items() if isinstance(table, Mapping) else ((row[0], index) for index, row in enumerate(table))
    for token, index in rows:
        yield index, Meaning(_bytes(token, letters))
    for one in description.get("added_tokens") or ():
        yield one["id"], Meaning(one["content"].encode(), is_named=True)


def _bytes(token: str, letters: Mapping[str, int]) -> bytes:
    if letters:
        return b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in token)
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_BLANK, " ").encode("utf-8", "replace")


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    parts = (description.get("pre_tokenizer"), description.get("decoder"))
    return any('"ByteLevel"' in json.dumps(part) for part in parts)


@cache
def byte_letters() -> dict[str, int]:
    """Return the letters of byte-level BPE and their bytes: printable Latin-1 itself, others from U+0100 on (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    for number, byte in enumerate(byte for byte in range(256) if byte not in printable):
        letters[chr(256 + number)] = byte
    return letters
