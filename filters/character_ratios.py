"""What a text is made of, beyond `text_statistics`: digits, capitals, bullets, ellipses, stop words.

Most are quality filters of Gopher (arXiv 2112.11446, A.1.1), which keeps a text with `alphabetic_word_ratio` >= .8,
`bullet_line_ratio` <= .9, `ellipsis_line_ratio` <= .3, `mark_word_ratio` <= .1 and two of eight English stop words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic.dataclasses import dataclass

from tokenmill.filters.character_classes import CATEGORIES, SPACE, UNICODE, classes_of
from tokenmill.filters.scorer import Columns, fingerprint_of

GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLET = re.compile(r"[-*•‣⁃◦▪●○■□–—·>]|\d{1,3}[.)]\s")
_ELLIPSIS = ("…", "...", "。。。")
_LETTERS = [place for place, category in enumerate(CATEGORIES) if category[0] == "L"]
_UPPER, _LOWER, _DIGIT, _CONTROL = (CATEGORIES.index(category) for category in ("Lu", "Ll", "Nd", "Cc"))


@dataclass(frozen=True, kw_only=True)
class CharacterRatios:
    """Ratios of characters (white space left out), words and lines; 0 for an empty text.

    Args:
        stop_words: `stop_words` counts how many of these occur at all between white space, whatever their case.
    """

    stop_words: tuple[str, ...] = GOPHER_STOP_WORDS

    name: ClassVar = "character_ratios"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 64
    columns: ClassVar = {
        "letter_ratio": pl.Float32(),
        "digit_ratio": pl.Float32(),
        "uppercase_ratio": pl.Float32(),
        "alphabetic_word_ratio": pl.Float32(),
        "mark_word_ratio": pl.Float32(),
        "bullet_line_ratio": pl.Float32(),
        "ellipsis_line_ratio": pl.Float32(),
        "longest_line_chars": pl.Int32(),
        "control_chars": pl.Int32(),
        "stop_words": pl.Int32(),
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=UNICODE)

    def score(self, batch: Sequence[str]) -> Columns:
        """Measure texts one by one."""
        wanted = frozenset(word.lower() for word in self.stop_words)
        rows = [{**of_characters(text), **of_lines(text), "stop_words": _found(text, wanted)} for text in batch]
        return {column: [row[column] for row in rows] for column in self.columns}


def of_characters(text: str) -> dict[str, Any]:
    """Measure letters, digits, capitals (of letters with case), control characters, and words with a letter.

    `mark_word_ratio` is Gopher's ratio of symbols to words: hash signs and ellipses.
    """
    classes = classes_of(text)
    counts = np.bincount(classes, minlength=SPACE + 1)
    visible = max(1, len(classes) - int(counts[SPACE]))
    inside = classes != SPACE
    begins = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    is_letter = (classes <= _LETTERS[-1]).astype(np.int8)
    worded = int(np.maximum.reduceat(is_letter, begins).sum()) if len(begins) else 0
    words = max(1, len(begins))
    return {
        "letter_ratio": int(counts[_LETTERS].sum()) / visible,
        "digit_ratio": int(counts[_DIGIT]) / visible,
        "uppercase_ratio": int(counts[_UPPER]) / max(1, int(counts[_UPPER] + counts[_LOWER])),
        "alphabetic_word_ratio": worded / words,
        "mark_word_ratio": (text.count("#") + text.count("...") + text.count("…")) / words,
        "control_chars": int(counts[_CONTROL]),
    }


def of_lines(text: str) -> dict[str, Any]:
    """Measure which share of the lines with something on them begin with a bullet or end with an ellipsis."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    number = max(1, len(lines))
    return {
        "bullet_line_ratio": sum(1 for line in lines if _BULLET.match(line)) / number,
        "ellipsis_line_ratio": sum(1 for line in lines if line.endswith(_ELLIPSIS)) / number,
        "longest_line_chars": max(map(len, lines), default=0),
    }


def _found(text: str, wanted: frozenset[str]) -> int:
    return len(wanted.intersection(text.lower().split()))
