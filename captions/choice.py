"""Which of a sample's captions are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chosen:
    """A caption and the column it is from."""

    column: str
    text: str


def chosen(
    slots: Sequence[Mapping[str, float]], usable: Mapping[str, Sequence[str]], *, key: str, seed: int
) -> list[Chosen]:
    """Give a caption a slot, drawn by weight among the columns that have one."""
    found: dict[str, Chosen] = {}
    for slot in slots:
        for column in slot:
            if usable.get(column):
                for text in usable[column]:
                    found.setdefault(text, Chosen(column, text))
                break
    return list(found.values())
