"""Who survives among copies: SQL expressions over the scores, the first decides, the next breaks ties.

    prefer: [aesthetic DESC, width_px * height_px DESC, length(caption)]

An expression judges each sample by itself, like a rule. Values that are missing or NaN come last, whichever way it is
sorted, and samples that are equal in all of them stand in the order of source and key: the order never depends on how
the samples lie on disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from tokenmill.errors import RecipeError
from tokenmill.filters.rules import value_expression, without_nan

_DIRECTION = re.compile(r"\s+(ASC|DESC)\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """An ordered survivor rule; `descending` says of each expression whether a larger value is preferred."""

    texts: tuple[str, ...]
    expressions: tuple[pl.Expr, ...]
    descending: tuple[bool, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], columns: Mapping[str, pl.DataType], where: str = "prefer") -> Preference:
        """Check the expressions against the known `columns`; raises RecipeError that starts with `where`."""
        expressions, descending = [], []
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise RecipeError(f"{where}[{number}]: expected an expression such as 'aesthetic DESC', found {text!r}")
            direction, bare = _DIRECTION.search(text), _DIRECTION.sub("", text)
            if _DIRECTION.search(bare):  # SQL would take the first one for a name
                raise RecipeError(f"{where}[{number}]: {text!r} names two directions")
            expressions.append(value_expression(bare, columns, f"{where}[{number}]"))
            descending.append(direction is not None and direction[1].upper() == "DESC")
        return cls(texts=tuple(texts), expressions=tuple(expressions), descending=tuple(descending))

    @classmethod
    def more_pixels(cls, columns: Mapping[str, pl.DataType]) -> Preference:
        """Return the rule there is without one: more pixels, where pixels are counted."""
        if not {"width_px", "height_px"} <= set(columns):
            return cls(texts=(), expressions=(), descending=())
        pixels = pl.col("width_px").cast(pl.Int64) * pl.col("height_px").cast(pl.Int64)
        return cls(texts=(), expressions=(pixels,), descending=(True,))

    @property
    def names(self) -> list[str]:
        """The columns of `values`, in order."""
        return [f"prefer_{number}" for number in range(len(self.expressions))]

    @property
    def columns(self) -> frozenset[str]:
        """The score columns it reads."""
        return frozenset(name for expression in self.expressions for name in expression.meta.root_names())

    def values(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return one column an expression, in the rows of `table`."""
        if not self.expressions:
            return pl.DataFrame()
        named = [one.alias(name) for one, name in zip(self.expressions, self.names, strict=True)]
        return without_nan(without_nan(table).select(named))
