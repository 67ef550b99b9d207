"""Which id means what: text, markers and codes in one vocabulary.

Two layouts. `emu3` is the released table, id for id (EMU3.md §3; 184,622 ids), so that checkpoints can be exchanged.
`compact` is any text tokenizer, ten markers, the codes: 2,314 ids for bytes and 2,048 codes, where an Emu3 embedding
would waste 99 % of a small model's parameters. The markers keep Emu3's names in both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.text import TextTokenizer, build_text_tokenizer, checked_ids
from tokenmill.tokenize.text_bytes import ByteTokenizer
from tokenmill.tokenize.text_qwen import QwenTokenizer

EMU3_CODEBOOK_SIZE = 32_768
_FIRST_SPECIAL = 151_643
_FIRST_EXTRA = 151_646
_NUM_EXTRAS = 205
_FIRST_CODE = 151_854
_MOST_CODES = 2**30  # ids are int32 from the loader on

# Surface forms, by role: `<|image token|>` starts the codes, `<|image start|>` the whole vision string.
_NAMES = {
    "pad": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "eol": "<|extra_200|>",
    "eof": "<|extra_201|>",
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "sot": "<|image token|>",
    "sov": "<|image start|>",
    "eov": "<|image end|>",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Every id of a model: text 0 .. text.size-1, markers, then codes from `vision_base` on."""

    name: str
    text: TextTokenizer
    codebook_size: int
    vision_base: int
    pad: int
    im_start: int
    im_end: int
    eol: int
    eof: int
    bos: int
    eos: int
    sot: int
    sov: int
    eov: int

    @property
    def size(self) -> int:
        """The number of ids: rows of the model's embedding."""
        return self.vision_base + self.codebook_size

    @property
    def spec(self) -> dict[str, Any]:
        """The mapping from which `build_vocabulary` makes this vocabulary again."""
        return {"name": self.name, **self.text.settings, "codebook_size": self.codebook_size}

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of every id's meaning; paths do not enter."""
        table = {role: getattr(self, role) for role in _NAMES}
        table |= {"vision_base": self.vision_base, "codebook_size": self.codebook_size, "text": self.text.fingerprint}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()

    def describe(self, index: int) -> str:
        """Name one id as Emu3's tokenizer prints it; raises ValueError outside the vocabulary."""
        if not 0 <= index < self.size:
            raise ValueError(f"id {index} is outside the vocabulary of {self.size}")
        if index < self.text.size:
            return self.text.decode([index])
        if index >= self.vision_base:
            return f"<|visual token {index - self.vision_base:06d}|>"
        roles = {getattr(self, role): surface for role, surface in _NAMES.items()}
        return roles.get(index) or f"<|extra_{index - _FIRST_EXTRA}|>"

    def vision_mask(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Say for each id whether it belongs to a picture: a code, EOL, EOF or EOV."""
        return (ids >= self.vision_base) | np.isin(ids, (self.eol, self.eof, self.eov))

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Encode a text; raises RunError where the text tokenizer gives an id that the vocabulary does not have."""
        return checked_ids(self.text, self.name, text)

    def encode_literal(self, text: str) -> tuple[int, ...]:
        """Encode a short text that templates repeat (`64*64`, ` USER: `), remembered."""
        return _encode_literal(self, text)


@lru_cache(maxsize=65_536)
def _encode_literal(vocabulary: Vocabulary, text: str) -> tuple[int, ...]:
    return tuple(vocabulary.encode(text).tolist())


def emu3_vocabulary(
    qwen_tiktoken_path: str | Path, codebook_size: int = EMU3_CODEBOOK_SIZE, **settings: str
) -> Vocabulary:
    """Give the released Emu3 table (EMU3.md §3) over a local `qwen.tiktoken`; `settings` as QwenTokenizer takes."""
    return _emu3_table(QwenTokenizer(qwen_tiktoken_path, **settings), codebook_size)


def _emu3_table(text: TextTokenizer, codebook_size: int) -> Vocabulary:
    _check_codebook(codebook_size)
    extra = {role: _FIRST_EXTRA + k for role, k in {"eol": 200, "eof": 201, "bos": 203, "eos": 204}.items()}
    after_extras = _FIRST_EXTRA + _NUM_EXTRAS
    return Vocabulary(
        name="emu3",
        text=text,
        codebook_size=codebook_size,
        vision_base=_FIRST_CODE,
        pad=_FIRST_SPECIAL,
        im_start=_FIRST_SPECIAL + 1,
        im_end=_FIRST_SPECIAL + 2,
        sot=after_extras,
        sov=after_extras + 1,
        eov=after_extras + 2,
        **extra,
    )


def compact_vocabulary(name: str, text: TextTokenizer, codebook_size: int) -> Vocabulary:
    """Lay out text ids, the ten markers, the codes, with no gaps; `name` is the text tokenizer's."""
    _check_codebook(codebook_size)
    markers = {role: text.size + k for k, role in enumerate(_NAMES)}
    return Vocabulary(
        name=name, text=text, codebook_size=codebook_size, vision_base=text.size + len(markers), **markers
    )


def byte_vocabulary(codebook_size: int) -> Vocabulary:
    """Give the compact vocabulary over UTF-8 bytes: 266 + codebook_size ids."""
    return compact_vocabulary("bytes", ByteTokenizer(), codebook_size)


def build_vocabulary(spec: Mapping[str, Any]) -> Vocabulary:
    """Build from a recipe's mapping: `{"name": "emu3", "path": …}` or `{"name": "bytes", "codebook_size": 2048}`.

    `emu3` is the released table; any other name is a text tokenizer's, in the compact layout. Raises RecipeError.
    """
    settings = dict(spec)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"a vocabulary needs a name, such as emu3 or bytes; found {dict(spec)}")
    codebook_size = settings.pop("codebook_size", EMU3_CODEBOOK_SIZE)
    if name == "emu3":
        if not {"path"} <= set(settings) <= {"path", "ranks_sha256"}:
            allowed = "path (a qwen.tiktoken), ranks_sha256, codebook_size"
            raise RecipeError(f"vocabulary emu3 takes {allowed}; found {sorted(settings)}")
        return emu3_vocabulary(settings.pop("path"), codebook_size, **settings)
    return compact_vocabulary(name, build_text_tokenizer(name, settings), codebook_size)


def vocabulary_shape(spec: Mapping[str, Any]) -> Vocabulary:
    """Give a vocabulary of the spec's size, for whoever counts ids and encodes no text: `emu3` then needs no file.

    Raises RecipeError as `build_vocabulary`.
    """
    if spec.get("name") == "emu3":
        return _emu3_table(ByteTokenizer(), spec.get("codebook_size", EMU3_CODEBOOK_SIZE))
    return build_vocabulary(spec)


def _check_codebook(codebook_size: int) -> None:
    if not isinstance(codebook_size, int) or not 1 <= codebook_size <= _MOST_CODES:
        raise RecipeError(f"codebook_size must be a whole number from 1 to {_MOST_CODES}, found {codebook_size!r}")
