"""Texts that must not be in: those on lists of hashes, as they are or however they are spelled, and words on lists.

`text_sha256` lists hold the SHA-256 of a text in UTF-8; `plain_sha256` lists that of its plain units joined by single
spaces (`text_units.plain_units`: NFKC, lower case, without punctuation; `plain_text` makes it). A word list has a
word or phrase a line, compared in plain units, so `Foo-Bar` blocks `foo bar` and a Chinese word blocks its characters
in a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.filters.blocklist import Paths
from tokenmill.filters.character_classes import UNICODE
from tokenmill.filters.hash_lists import SHA256_BYTES, HashList, read_hash_lists, read_lines
from tokenmill.filters.scorer import Columns, fingerprint
from tokenmill.filters.text_units import plain_units
from tokenmill.manifests.identity import digest_of, sha256_hex

Phrases = Mapping[str, Sequence[tuple[str, ...]]]  # first unit → phrases, the longest first


@dataclass(frozen=True, kw_only=True)
class TextBlocklist:
    """Whether a text is on a list, and how many blocked words or phrases it holds (overlapping ones count once).

    Args:
        text_sha256, plain_sha256: path or paths of lists of 64 digits.
        words: path or paths of word lists in UTF-8.
    """

    text_sha256: Paths = ()
    plain_sha256: Paths = ()
    words: Paths = ()

    name: ClassVar = "text_blocklist"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    places: ClassVar = ("text_sha256", "plain_sha256", "words")
    batch_size: ClassVar = 64
    columns: ClassVar = {"is_blocklisted": pl.Boolean(), "blocked_words": pl.Int32()}

    @model_validator(mode="after")
    def _some_list(self) -> TextBlocklist:
        if not (self.text_sha256 or self.plain_sha256 or self.words):
            raise ValueError("name a list: text_sha256, plain_sha256 or words")
        _ = self._hashes, self._phrases  # a list that cannot be read is an error of the recipe, before anything runs
        return self

    @property
    def fingerprint(self) -> str:
        """Covers what the lists hold, not where they lie."""
        as_it_is, plain = self._hashes
        lists = [as_it_is.digest, plain.digest, digest_of(self._phrases)]
        return fingerprint(self.name, self.version, {}, weights=" ".join((UNICODE, *lists)))

    def score(self, batch: Sequence[str]) -> Columns:
        """Look texts up one by one."""
        units = [plain_units(text) for text in batch]
        return {
            "is_blocklisted": [self._is_listed(text, plain) for text, plain in zip(batch, units, strict=True)],
            "blocked_words": [num_blocked(plain, self._phrases) for plain in units],
        }

    def _is_listed(self, text: str, units: Sequence[str]) -> bool:
        as_it_is, plain = self._hashes
        if len(as_it_is.rows) and as_it_is.holds(_sha256(text)):
            return True
        return bool(len(plain.rows)) and plain.holds(_sha256(" ".join(units)))

    @cached_property
    def _hashes(self) -> tuple[HashList, HashList]:
        where = f"scorer {self.name!r}"
        return (
            read_hash_lists(self.text_sha256, SHA256_BYTES, f"{where}: text_sha256"),
            read_hash_lists(self.plain_sha256, SHA256_BYTES, f"{where}: plain_sha256"),
        )

    @cached_property
    def _phrases(self) -> Phrases:
        return read_phrases(self.words, f"scorer {self.name!r}: words")


def plain_text(text: str) -> str:
    """Return what `plain_sha256` lists hash."""
    return " ".join(plain_units(text))


def read_phrases(paths: Sequence[str], where: str) -> Phrases:
    """Read word lists; raises RecipeError for a file that cannot be read and for a line without a word."""
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for path in paths:
        for number, line in read_lines(Path(path).expanduser(), where):
            units = tuple(plain_units(line))
            if not units:
                raise RecipeError(f"{where}: {path}, line {number}: no word in {line[:80]!r}")
            found[units[0]].add(units)
    return {first: sorted(found[first], key=lambda units: (-len(units), units)) for first in sorted(found)}


def num_blocked(units: Sequence[str], phrases: Phrases) -> int:
    """Count phrases in a text's units, from left to right, the longest first."""
    if phrases.keys().isdisjoint(units):
        return 0
    number, place = 0, 0
    while place < len(units):
        length = next(
            (len(one) for one in phrases.get(units[place], ()) if tuple(units[place : place + len(one)]) == one), 0
        )
        number, place = number + bool(length), place + max(1, length)
    return number


def _sha256(text: str) -> bytes:
    return bytes.fromhex(sha256_hex(text.encode("utf-8", "surrogatepass")))
