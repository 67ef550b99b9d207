"""What a recipe says about copies, checked against the columns its scorers give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.filters.preference import Preference
from tokenmill.pipelines.compare import DuplicateSettings
from tokenmill.pipelines.compare_kinds import ColumnAtLeast
from tokenmill.pipelines.compare_read import PHASH
from tokenmill.recipe import Duplicates


def duplicate_settings(
    modality: str, settings: Duplicates | None, columns: Mapping[str, Any]
) -> DuplicateSettings | None:
    """Check a modality's section `duplicates`; None where it asks for nothing.

    Raises:
        RecipeError: a column is missing that it needs, or the survivor rule is none.
    """
    if settings is None:
        return None
    where = f"filter.{modality}.duplicates"
    if settings.max_distance is not None:
        need(columns, PHASH, f"{where}.max_distance", "add the scorer perceptual_hash")
    semantic = text = None
    if settings.semantic is not None:
        need(columns, settings.semantic.column, f"{where}.semantic", "add the scorer that gives it")
        semantic = ColumnAtLeast(column=settings.semantic.column, least=settings.semantic.min_cosine)
    if settings.text is not None:
        need(columns, settings.text.column, f"{where}.text", "add the scorer that gives it")
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


def need(columns: Mapping[str, Any], column: str, where: str, hint: str) -> None:
    """Raise RecipeError unless the scorers give a column."""
    if column not in columns:
        raise RecipeError(f"{where}: needs the column {column}; {hint}")
