"""Selection as expressions over columns: cheap to change, checked before anything runs.

A rule is one SQL expression per sample (`min_side_px >= 512`); rules are tried in order and the first that fails is the
reason. Expressions that look at other rows (averages, windows) are refused: a unit's selection must not depend on the
rows that happen to lie beside it. A score that is missing or NaN never passes silently, it drops the sample as
`<rule>:null` (polars alone would let NaN pass `aesthetic >= 5.5`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import polars.selectors as cs

from tokenmill.errors import RecipeError

_RULE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_OTHER_ROWS = frozenset({"Agg", "Over", "Window", "Len", "SubPlan", "Quantile", "Shift", "AnonymousFunction"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Decides per sample whether a costly scorer runs (`when:`); what can't be decided stays behind the gate."""

    text: str
    expression: pl.Expr

    @classmethod
    def parse(cls, text: str, columns: Mapping[str, pl.DataType], where: str = "when") -> Gate:
        """Check `text` against the known `columns`; raises RecipeError that starts with `where`."""
        return cls(text=text, expression=_checked(text, columns, where))

    def apply(self, table: pl.DataFrame) -> pl.Series:
        """Return one bool a row of `table`."""
        return without_nan(table).select(self.expression.fill_null(False).alias("open")).to_series()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Ordered selection rules, name → expression."""

    texts: Mapping[str, str]
    expressions: Mapping[str, pl.Expr]

    @classmethod
    def parse(cls, texts: Mapping[str, str], columns: Mapping[str, pl.DataType], where: str = "rules") -> Rules:
        """Check all rules against the known `columns`; raises RecipeError naming rule, problem and what is allowed."""
        for name in texts:
            if not _RULE_NAME.fullmatch(name):
                raise RecipeError(f"{where}: a rule's name is letters, digits, '_', '.', '-', found {name!r}")
        expressions = {name: _checked(text, columns, f"{where}.{name}") for name, text in texts.items()}
        return cls(texts=dict(texts), expressions=expressions)

    def verdicts(self, table: pl.DataFrame) -> pl.DataFrame:
        """Judge every row by each rule alone: a column a rule, null where it passes, else its reason."""
        return without_nan(table).select(_verdict(name, rule) for name, rule in self.expressions.items())

    def apply(self, table: pl.DataFrame) -> pl.Series:
        """Return the reason each row is dropped for, null for kept rows."""
        if not self.expressions:
            return pl.Series("reason", [None] * table.height, dtype=pl.String)
        return self.verdicts(table).select(pl.coalesce(pl.all()).alias("reason")).to_series()


def columns_of(text: str, where: str = "expression") -> tuple[str, ...]:
    """Name the columns an expression reads, sorted; raises RecipeError when it can't be parsed."""
    return tuple(sorted(set(_parsed(text, where).meta.root_names())))


def value_expression(text: str, columns: Mapping[str, pl.DataType], where: str) -> pl.Expr:
    """Check an SQL expression that gives a value of any kind for each sample by itself.

    Raises:
        RecipeError: it can't be parsed, reads unknown columns or none, looks at other rows, or gives no single value.
    """
    expression = _single(text, columns, where)
    found = _tried(expression, columns, text, where)
    if len(found) != 2 or found.dtype.is_nested():
        raise RecipeError(f"{where}: {text!r} must give one value for each sample, it is {found.dtype}")
    return expression


def without_nan(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table whose NaN are null."""
    return table.with_columns(cs.float().fill_nan(None))


def _verdict(name: str, rule: pl.Expr) -> pl.Expr:
    unknown, failed = pl.lit(f"{name}:null"), pl.lit(name)
    return pl.when(rule.is_null()).then(unknown).when(~rule).then(failed).otherwise(None).alias(name)


def _parsed(text: Any, where: str) -> pl.Expr:
    if not isinstance(text, str):
        raise RecipeError(f"{where}: expected an SQL expression such as 'min_side_px >= 512', found {text!r}")
    try:
        return pl.sql_expr(text)
    except (pl.exceptions.SQLInterfaceError, pl.exceptions.SQLSyntaxError) as error:
        raise RecipeError(f"{where}: {text!r} is no SQL expression: {error}") from error


def _checked(text: str, columns: Mapping[str, pl.DataType], where: str) -> pl.Expr:
    expression = _single(text, columns, where)
    _check_type(expression, columns, text, where)
    return expression


def _single(text: str, columns: Mapping[str, pl.DataType], where: str) -> pl.Expr:
    """Parse an expression that judges each sample by itself, over known columns."""
    expression = _parsed(text, where)
    _check_columns(expression.meta.root_names(), columns, text, where)
    if _OTHER_ROWS & set(_words(json.loads(expression.meta.serialize(format="json")))):
        raise RecipeError(f"{where}: {text!r} looks at more than one row; a rule judges each sample by itself")
    return expression


def _check_columns(read: Collection[str], columns: Mapping[str, pl.DataType], text: str, where: str) -> None:
    if not read:
        raise RecipeError(f"{where}: {text!r} reads no column; allowed: {', '.join(sorted(columns))}")
    for column in read:
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise RecipeError(f"{where}: unknown column {column!r}{hint}; allowed: {', '.join(sorted(columns))}")


def _check_type(expression: pl.Expr, columns: Mapping[str, pl.DataType], text: str, where: str) -> None:
    result = _tried(expression, columns, text, where)
    if result.dtype != pl.Boolean or len(result) != 2:
        raise RecipeError(f"{where}: {text!r} must be true or false for each sample, it is {result.dtype}")


def _tried(expression: pl.Expr, columns: Mapping[str, pl.DataType], text: str, where: str) -> pl.Series:
    """Run the expression on two empty-handed rows."""
    rows = pl.DataFrame({name: [None, None] for name in columns}, schema=dict(columns))
    try:
        return rows.select(expression.alias("result")).to_series()
    except pl.exceptions.PolarsError as error:
        raise RecipeError(f"{where}: {text!r}: {' '.join(str(error).split())[:200]}") from error


def _words(node: Any) -> Iterator[str]:
    """Walk a serialized expression: every key, and every string that is not a name or a literal's value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            if key not in ("Column", "Literal"):
                yield from _words(value)
    elif isinstance(node, list):
        for value in node:
            yield from _words(value)
    elif isinstance(node, str):
        yield node
