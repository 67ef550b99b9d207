"""An n-gram language model with back-off, read from the ARPA format that KenLM, SRILM and others write.

Held as dictionaries, about 150 bytes an n-gram: for models of up to some ten million. KenLM's binary files are not
read. A line of a text is a sentence, from `<s>` to `</s>`; words are what white space separates, as the model was
trained.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenmill.errors import RecipeError

_UNKNOWN_LOG10 = -100.0  # where a model has no <unk>, as KenLM does
_LN10 = math.log(10)
_Entry = tuple[float, float]  # log10 probability, log10 back-off weight


class NgramModel:
    """Probabilities by n-gram; the file is read when first needed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()

    def prepared(self, text: str) -> str:
        """Return the text: there is nothing to prepare."""
        return text

    def log_probabilities(self, batch: Sequence[str]) -> list[tuple[float, int]]:
        """Return sums of natural log probabilities of words and sentence ends, and their number."""
        return [self._of_text(text) for text in batch]

    def _of_text(self, text: str) -> tuple[float, int]:
        total, number = 0.0, 0
        for line in text.splitlines():
            words = [word if (word,) in self._entries else "<unk>" for word in line.split()]
            if words:
                sentence = ["<s>", *words, "</s>"]
                total += sum(self._log10(sentence, place) for place in range(1, len(sentence)))
                number += len(sentence) - 1
        return total * _LN10, number

    def _log10(self, words: Sequence[str], place: int) -> float:
        """Return the probability of a word after those before it: the longest n-gram known, with back-off weights."""
        weight = 0.0
        for start in range(max(0, place - self._order + 1), place + 1):
            found = self._entries.get(tuple(words[start : place + 1]))
            if found is not None:
                return weight + found[0]
            context = self._entries.get(tuple(words[start:place]))
            weight += context[1] if context is not None else 0.0
        return weight + _UNKNOWN_LOG10

    @cached_property
    def _order(self) -> int:
        return max(map(len, self._entries))

    @cached_property
    def _entries(self) -> dict[tuple[str, ...], _Entry]:
        try:
            text = self._bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(f"is no text in UTF-8 (byte {error.start})") from error
        return dict(self._parsed(text.split("\n")))

    def _parsed(self, lines: Iterable[str]) -> Iterator[tuple[tuple[str, ...], _Entry]]:
        promised, found, order = 0, 0, 0
        ended = False
        for number, line in enumerate(map(str.strip, lines), 1):
            if line.startswith("ngram ") and not order:
                promised += self._number(line.partition("=")[2], number)
            elif line.startswith("\\") and line.endswith("-grams:"):
                order = self._number(line[1:-7], number)
            elif line == "\\end\\":
                ended = True
                break
            elif line and order:
                yield self._entry(line, order, number)
                found += 1
        if not ended or found != promised or not found:
            raise self._wrong(f"is no whole ARPA model: {promised} n-grams announced, {found} found")

    def _entry(self, line: str, order: int, number: int) -> tuple[tuple[str, ...], _Entry]:
        parts = line.split()
        try:
            weight = float(parts[order + 1]) if len(parts) == order + 2 else 0.0
            entry = float(parts[0]), weight
        except (ValueError, IndexError) as error:
            raise self._wrong(f"is wrong in line {number}: {line[:80]!r}") from error
        if len(parts) not in (order + 1, order + 2) or not all(map(math.isfinite, entry)):
            raise self._wrong(f"is wrong in line {number}: {line[:80]!r}")
        return tuple(parts[1 : order + 1]), entry

    def _number(self, text: str, number: int) -> int:
        try:
            return int(text)
        except ValueError as error:
            raise self._wrong(f"is wrong in line {number}") from error

    def _bytes(self) -> bytes:
        try:
            data = self._path.read_bytes()
            return gzip.decompress(data) if self._path.suffix == ".gz" else data
        except (OSError, EOFError, zlib.error) as error:
            raise self._wrong(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _wrong(self, what: str) -> RecipeError:
        return RecipeError(f"scorer 'perplexity': model {str(self._path)!r} {what}")
