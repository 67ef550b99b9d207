"""Texts of a batch in groups whose arrays fit into memory: counting units takes some 60 bytes a character.

A text that is longer than a group is one by itself: 100 million characters take 6 GB, so bound texts in the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_CHARS = 2**20


def text_groups(texts: Sequence[str], most_chars: int = MOST_CHARS) -> Iterator[Sequence[str]]:
    """Yield neighbouring texts of at most `most_chars` together, or one text that is longer; at least one group."""
    begin = chars = 0
    for place, text in enumerate(texts):
        if place > begin and chars + len(text) > most_chars:
            yield texts[begin:place]
            begin, chars = place, 0
        chars += len(text)
    yield texts[begin:]
