"""Which row of a given model's embedding each id of a vocabulary takes over, and which begin anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.token_meanings import Meaning, meanings_of
from tokenmill.tokenize.vocabulary import Vocabulary

log = logging.getLogger(__name__)

FRESH = -1


def rows_by_token(vocabulary: Vocabulary, theirs: Mapping[int, Meaning], rows: int, path: str) -> NDArray[np.int64]:
    """Give each id the row (0 .. rows - 1) of the same token in a model, or FRESH where it has none.

    Raises RecipeError if no token of text is in both: the tokenizers have nothing in common.
    """
    places = {meaning: index for index, meaning in theirs.items() if index < rows}
    kept = np.full(vocabulary.size, FRESH, np.int64)
    for index, meaning in meanings_of(vocabulary).items():
        kept[index] = places.get(meaning, FRESH)
    shared = int((kept[: vocabulary.text.size] >= 0).sum())
    if not shared:
        raise RecipeError(
            f"train.model.from: {path}: its tokenizer shares no token of text with the plan's vocabulary "
            f"{vocabulary.name}; tokenize with the model's, or set train.model.rows to fresh"
        )
    log.info("%s: %d of %d ids of text keep their rows, %d other ids; %d are fresh", path, shared,
             vocabulary.text.size, int((kept >= 0).sum()) - shared, int((kept < 0).sum()))  # fmt: skip
    return kept


def rows_by_id(vocabulary: Vocabulary, rows: int) -> NDArray[np.int64]:
    """Give each id of text the model's row of its number, as far as there is one."""
    ids = np.arange(vocabulary.size, dtype=np.int64)
    return np.where((ids < vocabulary.text.size) & (ids < rows), ids, FRESH)


def rows_anew(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Give no id a row of the model."""
    return np.full(vocabulary.size, FRESH, np.int64)
