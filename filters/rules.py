"""Selection as expressions over columns: cheap to change, checked before anything runs.

A rule is one SQL expression per sample (`min_side_px >= 512`); rules are tried in order and the first that fails is the
reason. Expressions that look at other rows (averages, windows) are refused: a unit's selection must not depend on the
rows that happen to lie beside it. A score that is missing or NaN never passes silently, it drops the sample as
`<rule>:null` (polars alone would let NaN pass `aesthetic >= 5.5`).

A rule may have a rescue, as Emu3's has (EMU3.md §1): what does not fulfil the rule, or cannot be judged by it, passes
after all where the rescue is true. A rescue that is null or NaN rescues nobody.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Ordered selection rules: name → expression, and for some of them the expression that rescues.

    Attributes:
        texts: name → what a sample has to fulfil in all, the rescue included (`(keep) OR (rescue)`).
    """

    texts: Mapping[str, str]
    expressions: Mapping[str, pl.Expr]
    keeps: Mapping[str, str] = field(default_factory=dict)
    rescues: Mapping[str, str] = field(default_factory=dict)
    rescue_expressions: Mapping[str, pl.Expr] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        texts: Mapping[str, str],
        columns: Mapping[str, pl.DataType],
        where: str = "rules",
        *,
        rescues: Mapping[str, str] | None = None,
        closed: Mapping[str, str] | None = None,
    ) -> Rules:
        """Check all rules against the known `columns`.

        Args:
            rescues: rule → the expression that keeps what fails it.
            closed: columns that no rule may name → why.
        Raises:
            RecipeError: naming rule, problem and what is allowed.
        """
        rescues = {name: text for name, text in (rescues or {}).items() if text is not None}
        for name in texts:
            if not _RULE_NAME.fullmatch(name):
                raise RecipeError(f"{where}: a rule's name is letters, digits, '_', '.', '-', found {name!r}")

        def checked(text: str, at: str) -> pl.Expr:
            _refuse_closed(text, closed or {}, at)
            return _checked(text, columns, at)

        return cls(
            texts={name: f"({text}) OR ({rescues[name]})" if name in rescues else text for name, text in texts.items()},
            expressions={name: checked(text, f"{where}.{name}") for name, text in texts.items()},
            keeps=dict(texts),
            rescues=rescues,
            rescue_expressions={name: checked(text, f"{where}.{name}.rescue") for name, text in rescues.items()},
        )

    @property
    def identity(self) -> list[list[str]]:
        """What of the rules determines a selection, as JSON values: name, expression, rescue where there is one."""
        return [
            [name, text, *([self.rescues[name]] if name in self.rescues else [])] for name, text in self.keeps.items()
        ]

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns the rules read."""
        expressions = (*self.expressions.values(), *self.rescue_expressions.values())
        return frozenset(name for expression in expressions for name in expression.meta.root_names())

    def verdicts(self, table: pl.DataFrame) -> pl.DataFrame:
        """Judge every row by each rule alone: a column a rule, null where it passes, else its reason."""
        return without_nan(table).select(self.judging())

    def judging(self) -> list[pl.Expr]:
        """Return what gives the verdict of each rule alone, on a table without NaN."""
        return [_verdict(name, rule, self.rescue_expressions.get(name)) for name, rule in self.expressions.items()]

    def apply(self, table: pl.DataFrame) -> pl.Series:
        """Return the reason each row is dropped for, null for kept rows."""
        if not self.expressions:
            return pl.Series("reason", [None] * table.height, dtype=pl.String)
        return self.verdicts(table).select(pl.coalesce(pl.all()).alias("reason")).to_series()

    def judge(self, table: pl.DataFrame) -> pl.DataFrame:
        """Judge every row by all rules.

        Returns:
            `reason` (the first rule's, null for kept rows), `rescued_by` (the rules the row came to, failed and was
            rescued from, joined by commas; null where none), and of each rule alone `passes:<rule>` (null: cannot be
            judged) and, where it has a rescue, `rescued:<rule>`.
        """
        nothing = pl.Series([None], dtype=pl.String)
        if not self.texts:
            empty = nothing.new_from_index(0, table.height)
            return pl.DataFrame({"reason": empty, "rescued_by": empty})
        found = without_nan(table.select(self.columns)).select(self._passing)
        found = found.with_columns(self._code, self._rescuers)
        # Codes become words once, which takes a third of building six columns of words.
        words = pl.Series("reason", [word for name in self.texts for word in (name, f"{name}:null")])
        return found.with_columns(words.gather(found["code"])).drop("code")

    @cached_property
    def _passing(self) -> list[pl.Expr]:
        """Return `passes:<rule>` of every rule, and `rescued:<rule>`."""
        expressions, rescues = self.expressions, self.rescue_expressions
        passes = [_passes(rule, rescues.get(name)).alias(f"passes:{name}") for name, rule in expressions.items()]
        return passes + [_is_rescued(expressions[name], one).alias(f"rescued:{name}") for name, one in rescues.items()]

    @cached_property
    def _code(self) -> pl.Expr:
        """Return 2 n where rule n is the first that fails, 2 n + 1 where it is the first that cannot be judged."""
        codes = []
        for number, name in enumerate(self.texts):
            passes = pl.col(f"passes:{name}")
            unknown, failed = (pl.lit(2 * number + more, dtype=pl.UInt32) for more in (1, 0))
            codes.append(pl.when(passes.is_null()).then(unknown).when(~passes).then(failed))
        return pl.coalesce(codes).alias("code")

    @cached_property
    def _rescuers(self) -> pl.Expr:
        """Return the names of the rules that a row came to and was rescued from."""
        found: list[pl.Expr] = []
        for name in self.rescues:
            before = list(self.texts)[: list(self.texts).index(name)]
            reached = pl.all_horizontal(pl.lit(True), *(pl.col(f"passes:{one}").fill_null(False) for one in before))
            found.append(pl.when(pl.col(f"rescued:{name}") & reached).then(pl.lit(name)))
        if len(found) < 2:
            return (found[0] if found else pl.lit(None, dtype=pl.String)).alias("rescued_by")
        return pl.concat_str(found, separator=",", ignore_nulls=True).replace("", None).alias("rescued_by")


def columns_of(text: str, where: str = "expression") -> tuple[str, ...]:
    """Name the columns an expression reads, sorted; raises RecipeError when it can't be parsed."""
    return tuple(sorted(set(_parsed(text, where).meta.root_names())))


def _passes(rule: pl.Expr, rescue: pl.Expr | None) -> pl.Expr:
    return rule if rescue is None else rule | rescue.fill_null(False)  # null OR false stays null


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


def _verdict(name: str, rule: pl.Expr, rescue: pl.Expr | None) -> pl.Expr:
    unknown, failed, passes = pl.lit(f"{name}:null"), pl.lit(name), _passes(rule, rescue)
    return pl.when(passes.is_null()).then(unknown).when(~passes).then(failed).otherwise(None).alias(name)


def _is_rescued(rule: pl.Expr, rescue: pl.Expr) -> pl.Expr:
    return ~rule.fill_null(False) & rescue.fill_null(False)


def without_nan(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table whose NaN are null, which is what rules are made for."""
    return table.with_columns(cs.float().fill_nan(None))


def _refuse_closed(text: Any, closed: Mapping[str, str], where: str) -> None:
    for column in columns_of(text, where) if closed else ():
        if column in closed:
            raise RecipeError(f"{where}: no rule may look at {column!r}: {closed[column]}")


def _parsed(text: Any, where: str) -> pl.Expr:
    if not isinstance(text, str):
        raise RecipeError(f"{where}: expected an SQL expression such as 'min_side_px >= 512', found {text!r}")
    try:
        return pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:  # a subquery, for one, ends as a column that is not found
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
