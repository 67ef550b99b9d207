"""Text as it comes: pieces of an answer that are whole characters.

A letter may take several ids (three for a Chinese one in bytes), so a piece is held back until it decodes; what was
shown is never taken back.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.tokenize.text import TextTokenizer

_BROKEN = "\ufffd"


class TextStream:
    """Turns ids into pieces of text; `end` gives what is left."""

    def __init__(self, tokenizer: TextTokenizer, show: Callable[[str], None] | None) -> None:
        self._tokenizer, self._show = tokenizer, show
        self._ids: list[int] = []
        self._shown = ""

    def add(self, index: int) -> None:
        """Take one id, and show what became whole with it."""
        self._ids.append(index)
        if self._show is not None:
            text = self._tokenizer.decode(self._ids)
            if not text.endswith(_BROKEN):
                self._advance(text)

    def end(self, text: str) -> None:
        """Show the rest of the whole text."""
        if self._show is not None:
            self._advance(text)

    def _advance(self, text: str) -> None:
        if text.startswith(self._shown) and len(text) > len(self._shown) and self._show is not None:
            self._show(text[len(self._shown) :])
            self._shown = text
