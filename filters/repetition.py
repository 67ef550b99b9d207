"""How much of a text is said twice: Gopher's measures of repetition (Rae et al., arXiv 2112.11446, A.1.1, table A1).

Gopher drops a text above: repeated lines .30, paragraphs .30, their characters .20 each; most frequent 2-, 3-, 4-gram
.20, .18, .16; repeated 5- to 10-grams .15, .14, .13, .12, .11, .10. Those are for text with spaces: where characters
are the units (`text_units.py`), ordinary prose repeats more, so take your own from the histogram in the report.

All texts of a batch are counted at once in numpy. An n-gram can only be repeated where its first n - 1 units are, so
each round looks at what the last one left: nine lengths cost about as much as two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.filters.character_classes import UNICODE
from tokenmill.filters.scorer import Columns, fingerprint_of
from tokenmill.filters.text_groups import text_groups
from tokenmill.filters.unit_hashes import hashed_units, splitmix64

TOP, REPEATED = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Shares of lines, paragraphs and n-grams that came before in the same text; 0 for an empty text.

    The `_char_` columns are shares of characters without white space. `top_Ngram_char_ratio`: the most frequent n-gram,
    if it occurs twice. `repeated_Ngram_char_ratio`: whatever lies in an n-gram that occurred before, counted once.
    """

    name: ClassVar = "repetition"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 64
    columns: ClassVar = {
        **{f"repeated_{what}_ratio": pl.Float32() for what in ("line", "line_char", "paragraph", "paragraph_char")},
        **{f"top_{n}gram_char_ratio": pl.Float32() for n in TOP},
        **{f"repeated_{n}gram_char_ratio": pl.Float32() for n in REPEATED},
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=UNICODE)

    def score(self, batch: Sequence[str]) -> Columns:
        """Measure texts, a batch at a time; a text's values do not depend on the others."""
        lines = [repeated_shares(text.splitlines()) for text in batch]
        paragraphs = [repeated_shares(_PARAGRAPHS.split(text)) for text in batch]
        return {
            "repeated_line_ratio": [share for share, _ in lines],
            "repeated_line_char_ratio": [share for _, share in lines],
            "repeated_paragraph_ratio": [share for share, _ in paragraphs],
            "repeated_paragraph_char_ratio": [share for _, share in paragraphs],
            **_together([ngram_shares(group) for group in text_groups(batch)]),
        }


def _together(groups: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {column: [value for group in groups for value in group[column]] for column in groups[0]}


def repeated_shares(parts: Sequence[str]) -> tuple[float, float]:
    """Return which share of the parts, and of their characters, stood there before; blank parts do not count."""
    seen: set[str] = set()
    number = again = chars = chars_again = 0
    for part in map(str.strip, parts):
        if not part:
            continue
        number, chars = number + 1, chars + len(part)
        if part in seen:
            again, chars_again = again + 1, chars_again + len(part)
        seen.add(part)
    return (again / number, chars_again / chars) if number else (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class _Units:
    """The units of all texts of a batch, one after the other (N), and which of the T texts each belongs to.

    All arrays have a number a unit, but `before` (N + 1) and `total` (T).
    """

    hashes: NDArray[np.uint64]
    owner: NDArray[np.intp]
    end: NDArray[np.intp]  # where the unit's text ends
    chars: NDArray[np.intp]
    before: NDArray[np.intp]  # characters before the unit, one more at the end
    total: NDArray[np.float64]  # characters of each text, at least 1


def ngram_shares(texts: Sequence[str]) -> dict[str, list[float]]:
    """Return the n-gram columns of texts."""
    units = _placed(texts)
    found: dict[str, list[float]] = {}
    place = np.arange(len(units.owner))
    key = units.hashes + splitmix64(units.owner.astype(np.uint64)) if len(place) else units.hashes
    for n in (*TOP, *REPEATED):
        inside = place + n <= units.end[place]
        place, key = place[inside], key[inside]
        key = key * _BASE + units.hashes[place + n - 1]
        order = np.argsort(key, kind="stable")
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = key[order[1:]] != key[order[:-1]]
        if n in TOP:
            found[f"top_{n}gram_char_ratio"] = _top_shares(units, place[order], fresh, n)
        else:
            found[f"repeated_{n}gram_char_ratio"] = _covered_shares(units, place[order[~fresh]], n)
        twice = np.sort(order[_in_groups_of_two(fresh)])
        place, key = place[twice], key[twice]
    return found


def _placed(texts: Sequence[str]) -> _Units:
    found = hashed_units(texts)
    before = np.concatenate(([0], np.cumsum(found.chars)))
    ends = np.cumsum(found.sizes)
    owner = np.repeat(np.arange(len(texts)), found.sizes)
    total = before[ends] - before[ends - found.sizes]
    return _Units(
        hashes=found.hashes, owner=owner, end=ends[owner], chars=found.chars, before=before,
        total=np.maximum(total, 1).astype(np.float64),
    )  # fmt: skip


def _in_groups_of_two(fresh: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the members of groups of two and more; `fresh` marks where a group begins."""
    followed = np.zeros_like(fresh)
    followed[:-1] = ~fresh[1:]
    return followed | ~fresh


def _top_shares(units: _Units, sorted_place: NDArray[np.intp], fresh: NDArray[np.bool_], n: int) -> list[float]:
    """Return each text's share of its most frequent n-gram, the longest of equally frequent ones."""
    begins = np.flatnonzero(fresh)
    counts = np.diff(np.append(begins, len(fresh)))
    begins, counts = begins[counts > 1], counts[counts > 1]
    first = sorted_place[begins]
    chars = units.before[first + n] - units.before[first]
    best = np.lexsort((chars, counts, units.owner[first]))  # the last of a text is its top
    share = np.zeros(len(units.total))
    share[units.owner[first][best]] = (counts * chars)[best]
    return _list(np.minimum(share / units.total, 1))


def _covered_shares(units: _Units, again: NDArray[np.intp], n: int) -> list[float]:
    """Return each text's share of characters in n-grams that begin at `again`, each character once."""
    size = len(units.owner)
    steps = np.bincount(again, minlength=size + 1) - np.bincount(again + n, minlength=size + 1)
    covered = np.cumsum(steps[:size]) > 0
    chars = np.bincount(units.owner, weights=units.chars * covered, minlength=len(units.total))
    return _list(chars / units.total)


def _list(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in values]
