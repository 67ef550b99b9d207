"""What the study found: aims met or missed, scores by model, and loss and scores against size as a plot.

The plot is drawn by PIL, axes and all, so that it needs no browser and no other library; four lines a panel are what
can still be told apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Curve = tuple[str, Sequence[tuple[float, float]]]

AIMS: Sequence[tuple[str, str, float]] = (  # of the best mixed model: kind, split, least
    ("two_objects", "all", 0.8),
    ("position", "seen", 0.7),
    ("counting", "seen", 0.9),
    ("counting", "unseen", 0.6),
    ("colours", "unseen", 0.6),
    ("position", "unseen", 0.6),
    ("colour_attribution", "unseen", 0.6),
)
MOST_PX, TIMES_BETTER = 1.5, 3.0
_COLOURS = ((36, 80, 214), (214, 36, 40), (36, 150, 60), (150, 90, 20))
_PANEL = (460, 340)
_MARGIN = (60, 36, 20, 50)  # left, top, right, bottom


def write_report(out: Path) -> None:
    """Write `study.md` and `study.png` beside `study.json`."""
    found = json.loads((out / "study.json").read_text())
    (out / "study.md").write_text(render(found))
    mixed = by_size(found)
    losses: list[Curve] = [
        (name, [(one["parameters"], one["held_out"][name]) for one in mixed if name in one["held_out"]])
        for name in ("loss", "loss_text", "loss_vision")
    ]
    kinds = ("single_object", "two_objects", "counting", "position")
    scores: list[Curve] = [
        (kind, [(one["parameters"], share(one, "pictures", kind)) for one in mixed]) for kind in kinds
    ]
    plot([("loss of held-out ids", losses), ("share of pictures that are right", scores)]).save(out / "study.png")


def by_size(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the mixed models, the smallest first."""
    mixed = [model for name, model in found["models"].items() if name.startswith("mixed")]
    return sorted(mixed, key=lambda model: int(model["parameters"]))


def share(model: Mapping[str, Any], what: str, kind: str, split: str = "all") -> float:
    """Return the share that was right of a kind; NaN where nobody was asked."""
    for one in model[what]:
        if (one["kind"], one["split"]) == (kind, split) and one.get("form", "all") == "all":
            return float(one["right"]["value"])
    return math.nan


def render(found: Mapping[str, Any]) -> str:
    """Return aims and scores as Markdown."""
    best = by_size(found)[-1]
    lines = ["| aim, of the largest mixed model | found | |", "|---|---|---|"]
    for kind, split, least in AIMS:
        value = share(best, "pictures", kind, split)
        lines.append(
            f"| {kind.replace('_', ' ')}, {split} ≥ {least:g} | {value:.2f} | {'met' if value >= least else 'missed'} |"
        )
    px, times = _extension(best)
    lines.append(f"| extension, median px ≤ {MOST_PX:g} | {px:.1f} | {'met' if px <= MOST_PX else 'missed'} |")
    met = "met" if times >= TIMES_BETTER else "missed"
    lines.append(f"| times better than frozen ≥ {TIMES_BETTER:g} | {times:.1f} | {met} |")
    kinds = [one["kind"] for one in best["pictures"] if one["split"] == "all"]
    asked = [one["kind"] for one in best["answers"] if one["split"] == "all" and one["form"] == "all"]
    titles = ["model", "parameters", "held-out loss", *kinds, *(f"{kind}?" for kind in asked), "extension, px"]
    lines += ["", f"| {' | '.join(title.replace('_', ' ') for title in titles)} |", "|---" * len(titles) + "|"]
    for name, model in found["models"].items():
        cells = [name, f"{model['parameters']:,}", f"{model['held_out']['loss']:.3f}"]
        cells += [f"{share(model, 'pictures', kind):.2f}" for kind in kinds]
        cells += [f"{share(model, 'answers', kind):.2f}" for kind in asked]
        lines.append(f"| {' | '.join([*cells, f'{_extension(model)[0]:.1f}'])} |")
    return "\n".join(lines) + "\n"


def _extension(model: Mapping[str, Any]) -> tuple[float, float]:
    (found,) = [one for one in model["clips"] if one["kind"] == "all"]
    moving = found["moving"]
    return (moving["median"] if moving else math.nan), found["times_better_than_frozen"] or math.nan


def plot(panels: Sequence[tuple[str, Sequence[Curve]]]) -> Image.Image:
    """Draw curves over a logarithmic axis of parameters, a panel beside the other."""
    width, height = _PANEL
    canvas = Image.new("RGB", (width * len(panels), height), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (title, curves) in enumerate(panels):
        _panel(pen, number * width, title, curves)
    return canvas


def _panel(pen: ImageDraw.ImageDraw, left: int, title: str, curves: Sequence[Curve]) -> None:
    width, height = _PANEL
    points = [point for _, curve in curves for point in curve if math.isfinite(point[1])]
    if not points:
        return
    xs = [math.log10(x) for x, _ in points]
    low, high = min(xs) - 0.1, max(xs) + 0.1
    bottom, top = 0.0, max(y for _, y in points) * 1.1 or 1.0
    x0, y0, x1, y1 = left + _MARGIN[0], _MARGIN[1], left + width - _MARGIN[2], height - _MARGIN[3]
    font = ImageFont.load_default(13)
    pen.line([(x0, y0), (x0, y1), (x1, y1)], fill="black")
    pen.text((x0, 10), title, fill="black", font=font)
    for part in range(5):
        value = bottom + (top - bottom) * part / 4
        at = y1 - (y1 - y0) * part / 4
        pen.line([(x0 - 4, at), (x0, at)], fill="black")
        pen.text((left + 8, at - 8), f"{value:.2f}", fill="black", font=font)
    for x in sorted({x for x, _ in points}):
        at = x0 + (x1 - x0) * (math.log10(x) - low) / (high - low)
        pen.line([(at, y1), (at, y1 + 4)], fill="black")
        pen.text((at - 18, y1 + 8), f"{x / 1e6:.2g} M", fill="black", font=font)
    for (name, curve), colour in zip(curves, _COLOURS, strict=False):
        placed = [
            (x0 + (x1 - x0) * (math.log10(x) - low) / (high - low), y1 - (y1 - y0) * (y - bottom) / (top - bottom))
            for x, y in curve
            if math.isfinite(y)
        ]
        if len(placed) > 1:
            pen.line(placed, fill=colour, width=2)
        for x, y in placed:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        if placed:
            pen.text((placed[-1][0] - 90, placed[-1][1] - 18), name.replace("_", " "), fill=colour, font=font)
