"""Histograms of every score, with the rules' thresholds drawn in: where a rule cuts is seen, not guessed.

Each bar says how many of its samples were kept and how many were lost, whatever for, so a threshold that does nothing,
or does all of it, shows at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.pipelines.checked_recipe import MODALITIES
from tokenmill.pipelines.report_charts import Level, Part, histogram, stacked_bar
from tokenmill.pipelines.report_data import Run
from tokenmill.pipelines.report_html import Child, Markup, count, element, join, note, section

_BINS = 32
_NUMBER = r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<", "=": "="}
_MIRRORED = {">=": "<=", "<=": ">=", ">": "<", "<": ">", "=": "="}


def scores_section(run: Run) -> Markup:
    """Draw the scores of every modality."""
    if not run.tables:
        return section("scores", "Scores", note("Nothing is selected yet, so there are no verdicts to show."))
    parts = [part for modality in MODALITIES if (part := _modality(run, modality))]
    return section(
        "scores",
        "Scores",
        element("p", _key("kept", "kept"), _key("lost", "lost, for whatever reason"), class_="legend"),
        parts,
    )


def _key(kind: str, text: str) -> Markup:
    return element("span", text, class_=f"key {kind}")


def _modality(run: Run, modality: str) -> Markup | None:
    tables = [table for table in run.tables.values() if table.modality == modality]
    columns: Mapping[str, Any] = run.chain.passes[modality].columns
    if not tables or not columns:
        return None
    rows = pl.concat([table.rows for table in tables], how="diagonal_relaxed")
    rules = _all_rules(run, modality, [table.source for table in tables])
    charts = [chart for column, kind in columns.items() if (chart := _column(rows, column, kind, rules))]
    total = sum(table.num_samples for table in tables)
    told = (
        f"{count(rows.height)} samples" if rows.height == total else f"{count(rows.height)} of {count(total)} samples"
    )
    rule_list = element("ul", *(element("li", element("b", n), " ", element("code", t)) for n, t in rules.items()))
    title = element("h3", modality, " ", element("small", told))
    return join(title, rule_list if rules else note("No rules: all are kept."), element("div", charts, class_="charts"))


def _all_rules(run: Run, modality: str, sources: Sequence[str]) -> dict[str, str]:
    """Return the rules of a modality and, by `source/rule`, those that a source has instead."""
    rules: dict[str, str] = dict(run.chain.rules[modality].texts)
    for source in sources:
        texts = run.chain.rules_of[source].texts
        rules |= {f"{source}/{name}": text for name, text in texts.items() if rules.get(name) != text}
    return rules


def _column(rows: pl.DataFrame, column: str, kind: Any, rules: Mapping[str, str]) -> Markup | None:
    """Draw one column: a histogram of numbers, bars of a few words; hashes and vectors are left out."""
    if column not in rows.columns or kind == pl.UInt64 or kind.is_nested():
        return None
    known = rows.filter(pl.col(column).is_not_null())
    missing = rows.height - known.height
    if not known.height:
        body: Child = note("No sample has this score.")
    elif kind.is_numeric():
        body = _histogram(known, column, list(thresholds(rules, column)))
    else:
        body = _bars(known, column)
    gap = element("small", f"{count(missing)} without") if missing else None
    return element("figure", element("figcaption", element("b", column), gap), body, class_="plot")


def _histogram(rows: pl.DataFrame, column: str, levels: list[Level]) -> Child:
    values = rows[column].cast(pl.Float64).to_numpy()
    finite = np.isfinite(values)
    kept = rows["keep"].to_numpy()[finite].astype(bool)
    values = values[finite]
    if not len(values):
        return note("No sample has a finite value.")
    edges, log = bins(values, [level.value for level in levels])
    inside = np.clip(values, edges[0], edges[-1])
    stacks = {
        "kept": np.histogram(inside[kept], edges)[0].tolist(),
        "lost": np.histogram(inside[~kept], edges)[0].tolist(),
    }
    told = ", ".join(level.label for level in levels)
    middle = f"median {np.median(values):.4g}"
    label = f"histogram of {column}, {middle}" + (f", rule {told}" if told else "")
    chart = histogram(edges.tolist(), stacks, levels, label, log=log)
    return join(chart, element("p", middle, ", logarithmic" if log else "", class_="small"))


def bins(values: NDArray[np.float64], levels: list[float]) -> tuple[NDArray[np.float64], bool]:
    """Choose edges that hold every threshold and all but the outermost 0.2 % of values; logarithmic where skewed."""
    low, high = (float(edge) for edge in np.quantile(values, [0.002, 0.998]))
    low, high = min([low, *levels]), max([high, *levels])
    if low == high:
        low, high = low - 0.5, high + 0.5
    crowded = float(np.median(values)) - low < 0.15 * (high - low)
    if low > 0 and high > 4 * low and crowded:
        return np.geomspace(low / 1.1, high * 1.1, _BINS + 1), True
    room = 0.02 * (high - low)
    return np.linspace(low - room if low < 0 or low > room else low, high + room, _BINS + 1), False


def thresholds(rules: Mapping[str, str], column: str) -> Iterator[Level]:
    """Find the comparisons of a column with a number in SQL rules, either way round, `BETWEEN` too."""
    name = re.escape(column)
    for rule, text in rules.items():
        for sign, value in re.findall(rf"\b{name}\b\s*(>=|<=|>|<|=)\s*{_NUMBER}", text):
            yield _level(rule, sign, value)
        for value, sign in re.findall(rf"(?<![\w.]){_NUMBER}\s*(>=|<=|>|<|=)\s*{name}\b", text):
            yield _level(rule, _MIRRORED[sign], value)
        for low, high in re.findall(rf"\b{name}\b\s+BETWEEN\s+{_NUMBER}\s+AND\s+{_NUMBER}", text, re.IGNORECASE):
            yield from (_level(rule, ">=", low), _level(rule, "<=", high))


def _level(rule: str, sign: str, value: str) -> Level:
    return Level(value=float(value), label=f"{rule} {_SIGNS[sign]} {float(value):g}", kind="threshold")


def _bars(rows: pl.DataFrame, column: str) -> Child:
    """Draw how often each value of a flag or a word occurs, the commonest first."""
    grouped = rows.group_by(pl.col(column).cast(pl.String)).agg(
        pl.len().alias("all"), pl.col("keep").fill_null(False).sum().alias("kept")
    )
    found = grouped.sort(["all", column], descending=[True, False]).head(6).rows()
    whole = max(number for _, number, _ in found)
    lines = []
    for value, number, kept in found:
        parts = [
            Part(value=kept, kind="kept", title=f"{count(kept)} kept"),
            Part(value=number - kept, kind="lost", title=f"{count(number - kept)} lost"),
        ]
        told = element("div", element("span", value), element("span", count(number)), class_="row")
        lines.append(element("div", told, stacked_bar(parts, whole, f"{value}: {number}"), class_="stage"))
    return lines
