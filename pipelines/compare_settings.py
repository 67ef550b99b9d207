"""What a recipe says about copies, checked against the columns its scorers give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from tokenmill.errors import RecipeError
from tokenmill.filters.preference import Preference
from tokenmill.filters.rules import Rules
from tokenmill.filters.scorer import Scorer
from tokenmill.pipelines.compare import DuplicateSettings
from tokenmill.pipelines.compare_kinds import ColumnAtLeast
from tokenmill.pipelines.compare_read import PHASH
from tokenmill.recipe import Duplicates


def duplicate_settings(
    modality: str, settings: Duplicates | None, columns: Mapping[str, Any]
) -> DuplicateSettings | None:
    """Check a modality's section `duplicates`; None where it asks for nothing.

    Raises:
        RecipeError: a column that it needs is missing or of another kind, or the survivor rule is none.
    """
    if settings is None:
        return None
    where = f"filter.{modality}.duplicates"
    for key in ("max_distance", "semantic") if modality == "document" else ():
        if getattr(settings, key) is not None:
            raise RecipeError(f"{where}.{key}: documents are compared by their bytes and texts; allowed: exact, text")
    if settings.max_distance is not None:
        need(columns, PHASH, f"{where}.max_distance", "add the scorer perceptual_hash, or clip_hash")
    semantic = text = None
    if settings.semantic is not None:
        need_vectors(columns, settings.semantic.column, f"{where}.semantic")
        semantic = ColumnAtLeast(column=settings.semantic.column, least=settings.semantic.min_cosine)
    if settings.text is not None:
        need_signatures(columns, settings.text.column, f"{where}.text")
        text = ColumnAtLeast(column=settings.text.column, least=settings.text.min_jaccard)
    prefer = settings.prefer
    return DuplicateSettings(
        exact=settings.exact,
        max_distance=settings.max_distance,
        semantic=semantic,
        text=text,
        preference=Preference.parse(prefer, columns, f"{where}.prefer") if prefer else Preference.more_pixels(columns),
        keep_earlier=settings.keep_earlier,
    )


def scorers_compared(
    settings: DuplicateSettings, rules: Mapping[str, Rules], scorers: Mapping[str, Scorer]
) -> frozenset[str]:
    """Name the scorers a comparison reads: what the rules, the survivor rule and the kinds of copies look at."""
    columns = set(settings.preference.columns).union(*(one.columns for one in rules.values()))
    columns |= {PHASH} if settings.max_distance is not None else set()
    columns |= {asked.column for asked in (settings.semantic, settings.text) if asked is not None}
    return frozenset(name for name, scorer in scorers.items() if columns.intersection(scorer.columns))


def need(columns: Mapping[str, Any], column: str, where: str, hint: str) -> None:
    """Raise RecipeError unless the scorers give a column."""
    if column not in columns:
        raise RecipeError(f"{where}: needs the column {column}; {hint}")


def need_vectors(columns: Mapping[str, Any], column: str, where: str) -> None:
    """Raise RecipeError unless the scorers give a column of vectors: of float16 or float32, or in bytes."""
    need(columns, column, where, "add the scorer that gives it")
    if columns[column] != pl.Binary and _inner(columns[column]) not in (pl.Float16, pl.Float32):
        raise RecipeError(f"{where}: {column} holds {columns[column]}, not vectors of float16 or float32")


def need_signatures(columns: Mapping[str, Any], column: str, where: str) -> None:
    """Raise RecipeError unless the scorers give a column of MinHash signatures: lists of UInt32."""
    need(columns, column, where, "add the scorer that gives it")
    if _inner(columns[column]) != pl.UInt32:
        raise RecipeError(f"{where}: {column} holds {columns[column]}, not MinHash signatures (lists of UInt32)")


def _inner(dtype: Any) -> Any:
    return dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
