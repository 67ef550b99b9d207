"""Cheap figures about a text that most selection rules for text are made of (Gopher, arXiv 2112.11446, A.1.1).

Counts are over Unicode, so they hold in any script; words are what white space separates, which says little for Chinese
or Japanese: use `num_chars` where `script` says so.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import polars as pl

from tokenmill.filters.character_classes import CATEGORIES, counts_of
from tokenmill.filters.scorer import Columns, fingerprint_of

_SCRIPTS = {"CJK": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA", "KATAKANA-HIRAGANA": "KANA"}
_SCRIPT_SAMPLE_CHARS = 2000
_SYMBOLS = [place for place, category in enumerate(CATEGORIES) if category[0] in "PSCZ"]  # white space is apart


@dataclass(frozen=True, kw_only=True)
class TextStatistics:
    """Length, words, symbols, repeated lines, and the script most letters are of."""

    name: ClassVar = "text_statistics"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 256
    columns: ClassVar = {
        "num_chars": pl.Int32(),
        "num_words": pl.Int32(),
        "mean_word_length": pl.Float32(),
        "symbol_ratio": pl.Float32(),
        "duplicate_line_ratio": pl.Float32(),
        "script": pl.String(),
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[str]) -> Columns:
        """Measure texts one by one."""
        rows = [_measure(text) for text in batch]
        return {column: [row[column] for row in rows] for column in self.columns}


def _measure(text: str) -> dict[str, Any]:
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    visible = sum(map(len, words))
    symbols = int(counts_of(text)[_SYMBOLS].sum())
    return {
        "num_chars": len(text),
        "num_words": len(words),
        "mean_word_length": visible / len(words) if words else 0.0,
        "symbol_ratio": symbols / visible if visible else 0.0,
        "duplicate_line_ratio": 1 - len(set(lines)) / len(lines) if lines else 0.0,
        "script": _script(text),
    }


def _script(text: str) -> str | None:
    """Name the commonest script among the first letters, from their Unicode names; None without letters."""
    letters = [char for char in text[:_SCRIPT_SAMPLE_CHARS] if char.isalpha()]
    scripts = Counter(map(_first_word_of_name, letters))
    if not scripts:
        return None
    first = min(scripts, key=lambda script: (-scripts[script], script))
    return _SCRIPTS.get(first, first).lower()


@lru_cache(maxsize=100_000)
def _first_word_of_name(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").split(" ", 1)[0]
