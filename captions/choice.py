"""Which of a sample's captions are used: the rule of the recipe's `use`, for one sample.

A draw gives every column of a slot a number of its own, u ** (1 / weight) with u uniform from seed, key, slot and
column; the largest wins. So a column wins as often as its weight says, and a draw changes only where it must: another
slot touches no other, a column that becomes usable wins only samples for itself. Choices cost 4 µs a sample, and nobody
is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmill.captions.draws import drawn_fraction


@dataclass(frozen=True, slots=True)
class Chosen:
    """A caption that is used, and the column it is from."""

    column: str
    text: str


def chosen(
    slots: Sequence[Mapping[str, float]], usable: Mapping[str, Sequence[str]], *, key: str, seed: int
) -> list[Chosen]:
    """Return the captions of a sample, in the order of the slots; none if no column has a usable text.

    Each slot gives one caption: of a column drawn by weight among those with usable texts, else of the first of those
    with weight 0, which only stand in; of a column's several texts one is drawn too. A slot of a single column gives
    all texts of it: then they are the wordings that a source brings. Equal texts come once, where they came first.

    Args:
        slots: column → weight, at least 0.
        usable: column → texts that passed its checks.
        key: of the sample.
        seed: of the recipe.
    """
    found: dict[str, Chosen] = {}
    for number, slot in enumerate(slots):
        column = _drawn_column(slot, usable, number, key, seed)
        if column is None:
            continue
        texts = usable[column] if len(slot) == 1 else (_drawn_text(usable[column], f"{number} {column}", key, seed),)
        for text in texts:
            found.setdefault(text, Chosen(column, text))
    return list(found.values())


def _drawn_column(
    slot: Mapping[str, float], usable: Mapping[str, Sequence[str]], number: int, key: str, seed: int
) -> str | None:
    here = [column for column in slot if usable.get(column)]
    weighted = [column for column in here if slot[column] > 0]
    if not weighted:
        return here[0] if here else None
    if len(weighted) == 1:
        return weighted[0]
    return max(
        weighted, key=lambda column: math.log(drawn_fraction(f"slot {number} {column}", seed, key)) / slot[column]
    )


def _drawn_text(texts: Sequence[str], purpose: str, key: str, seed: int) -> str:
    if len(texts) == 1:
        return texts[0]
    return max(texts, key=lambda text: drawn_fraction(f"text {purpose}", seed, f"{text}\n{key}"))
