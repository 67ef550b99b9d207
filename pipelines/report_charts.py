"""The report's few kinds of chart as inline SVG: coloured by the page's style, readable without it, no script.

Bars that are there but too small to see are drawn a pixel and a half high: one dropped sample among thousands must
show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokenmill.pipelines.report_html import Child, Markup, count, element, short_number

Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of a stacked bar: its size, its class in the style sheet, what it is in words."""

    value: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A dashed line across a chart, at a value of its axis."""

    value: float
    label: str
    kind: str = "level"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line of (x, y) points; `kind` is its class in the style sheet."""

    points: Sequence[tuple[float, float]]
    kind: str


def stacked_bar(parts: Sequence[Part], whole: float, label: str) -> Markup:
    """Return a horizontal bar as wide as its box; `whole` is the value that would fill it."""
    width, left = 1000.0, 0.0
    shapes: list[Child] = []
    for part in parts:
        wide = max(width * part.value / max(whole, 1e-9), 4.0) if part.value else 0.0
        wide = min(wide, width - left)
        title = element("title", part.title)
        shapes.append(element("rect", title, class_=part.kind, x=_n(left), y=0, width=_n(wide), height=10))
        left += wide
    return element(
        "svg", element("rect", class_="rail", x=0, y=0, width=1000, height=10), shapes,
        class_="bar", viewBox="0 0 1000 10", preserveAspectRatio="none", role="img", aria_label=label,
    )  # fmt: skip


def histogram(
    edges: Sequence[float], stacks: Mapping[str, Sequence[int]], levels: Sequence[Level], label: str, *, log: bool
) -> Markup:
    """Return bars over equal bins (equal in the logarithm if `log`); `stacks` maps a class to counts, bottom first."""
    width, height, bottom = 280, 140, 118
    top = max([sum(column) for column in zip(*stacks.values(), strict=True)] + [1])
    position = _scale(edges[0], edges[-1], 4, width - 4, log=log)
    shapes: list[Child] = []
    for index in range(len(edges) - 1):
        x, end = position(edges[index]), position(edges[index + 1])
        base = float(bottom)
        for kind, counts in stacks.items():
            if counts[index]:
                tall = max(counts[index] / top * (bottom - 26), 1.5)
                base -= tall
                span = f"{short_number(edges[index])} to {short_number(edges[index + 1])}"
                title = element("title", f"{span}: {count(counts[index])} {kind}")
                shapes.append(
                    element("rect", title, class_=kind, x=_n(x + 0.4), y=_n(base), width=_n(max(end - x - 0.8, 0.6)),
                            height=_n(tall))
                )  # fmt: skip
    shapes.append(element("line", class_="axis", x1=4, x2=width - 4, y1=bottom + 0.5, y2=bottom + 0.5))
    shapes += [
        element("text", short_number(x), class_="tick", x=_n(position(x)), y=height - 6, text_anchor="middle")
        for x in ticks(edges[0], edges[-1], log=log)
    ]
    shapes += [_threshold(level, position, width, bottom, 12 + 13 * row) for row, level in enumerate(levels)]
    return element("svg", shapes, class_="chart", viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def _threshold(level: Level, position: Scale, width: int, bottom: int, y: int) -> Child:
    x = position(level.value)
    anchor = "start" if x < width / 2 else "end"
    return [
        element("line", class_=level.kind, x1=_n(x), x2=_n(x), y1=4, y2=bottom),
        element("text", level.label, class_="mark", x=_n(x + (4 if anchor == "start" else -4)), y=y,
                text_anchor=anchor),
    ]  # fmt: skip


def line_chart(curves: Sequence[Curve], levels: Sequence[Level], dots: Sequence[Level], label: str) -> Markup:
    """Return curves over one x axis, with dashed levels and dots at the right edge, both labelled there."""
    width, height, left, right, bottom = 560, 260, 40, 430, 226
    xs = [x for curve in curves for x, _ in curve.points]
    shown = [y for curve in curves for _, y in curve.points] + [level.value for level in (*levels, *dots)]
    low, high = 0.0, max(shown) * 1.05
    low = min(shown) * 0.9 if min(shown) > 0.5 * high else low
    across = _scale(min(xs), max(max(xs), min(xs) + 1), left, right)
    up = _scale(low, high, bottom, 12)
    shapes: list[Child] = [_grid(low, high, up, left, right), _steps(xs, across, bottom)]
    for level in levels:
        y = up(level.value)
        shapes.append(element("line", class_=level.kind, x1=left, x2=right, y1=_n(y), y2=_n(y)))
    for curve in curves:
        points = " ".join(f"{_n(across(x))},{_n(up(y))}" for x, y in curve.points)
        shapes.append(element("polyline", class_=curve.kind, points=points))
    shapes += [element("circle", class_="dot", cx=right, cy=_n(up(dot.value)), r=4.5) for dot in dots]
    named = sorted((*levels, *dots), key=lambda level: level.value)
    for y, level in zip(_apart([up(level.value) for level in named], 15.0), named, strict=True):
        text = f"{level.label} {level.value:.2f}"
        shapes.append(element("text", text, class_="mark", x=right + 10, y=_n(y + 4)))
    return element("svg", shapes, class_="chart wide", viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def _grid(low: float, high: float, up: Scale, left: int, right: int) -> Child:
    step = _round_step((high - low) / 5)
    value = math.ceil(low / step) * step
    shapes: list[Child] = []
    while value <= high:
        y = up(value)
        shapes.append(element("line", class_="grid", x1=left, x2=right, y1=_n(y), y2=_n(y)))
        shapes.append(element("text", f"{value:g}", class_="tick", x=left - 6, y=_n(y + 4), text_anchor="end"))
        value = round(value + step, 10)
    return shapes


def _steps(xs: Sequence[float], across: Scale, bottom: int) -> Child:
    places = sorted({min(xs), (min(xs) + max(xs)) // 2, max(xs)})
    ticks = [
        element("text", count(x), class_="tick", x=_n(across(x)), y=bottom + 16, text_anchor="middle") for x in places
    ]
    return [
        *ticks,
        element("text", "step", class_="tick", x=_n(across(places[0])), y=bottom + 30, text_anchor="middle"),
    ]


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Move labels that would overlap upwards; `places` descend on the page (their values ascend)."""
    moved: list[float] = []
    for place in places:
        moved.append(min(place, moved[-1] - gap) if moved else place)
    return moved


def ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Return round values within a range, five or so; powers of ten, or 1, 2, 5 of them, on a logarithmic axis."""
    if not log:
        step = _round_step((high - low) / 4)
        first = math.ceil(low / step - 1e-9)
        return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    fine = [value for value in fine if low <= value <= high]
    if len(fine) <= 6:
        return fine
    tens = [float(f"1e{power}") for power in powers if low <= float(f"1e{power}") <= high]
    return tens[:: math.ceil(len(tens) / 6)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _scale(low: float, high: float, start: float, end: float, *, log: bool = False) -> Scale:
    """Return a function that maps [low, high] to [start, end], and values beyond to the borders."""
    f: Scale = math.log if log else float
    span = (f(high) - f(low)) or 1.0

    def position(value: float) -> float:
        share = (f(max(value, low) if log else value) - f(low)) / span
        return start + (end - start) * min(max(share, 0.0), 1.0)

    return position


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
