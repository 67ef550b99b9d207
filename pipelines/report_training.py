"""The loss while training, with what counting would reach drawn across it: a curve that falls proves little alone.

Training logs the loss over all ids of a picture. Ends of rows and frames are nearly free to the model, so the n-gram
losses of codes are scaled as if they were free to counting too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenmill.pipelines.report_charts import Curve, Level, line_chart
from tokenmill.pipelines.report_html import Markup, count, element, facts_list, note, seconds, section
from tokenmill.pipelines.report_learned import Learned

_POINTS = 300


def training_section(learned: Learned, plan: str | None) -> Markup:
    """Draw the loss curves and the facts of the run; `plan` is the full id of this recipe's plan."""
    if not learned.metrics:
        return section("training", "Training", note("No training has been logged yet."))
    rows = learned.metrics
    taken = [row for row in rows if "skipped" not in row]
    spent = sum(row.get("step_s", 0.0) for row in rows)
    tokens = sum(row.get("tokens", 0) for row in rows)
    facts = (
        ("steps", count(rows[-1]["step"])),
        ("ids read", count(tokens)),
        ("time in steps", seconds(spent)),
        ("ids a second", count(tokens / spent) if spent else "–"),
        (
            "waiting for data",
            f"{100 * sum(row.get('data_wait_s', 0.0) for row in rows) / spent:.1f} %" if spent else "–",
        ),
        ("last loss", f"{taken[-1]['loss']:.3f}" if taken else "–"),
        *((("steps passed over", count(len(rows) - len(taken))),) if len(taken) < len(rows) else ()),
        ("peak memory of a rank", f"{max(row.get('memory_gib', 0.0) for row in rows):.1f} GiB"),
    )
    charts = [
        _chart(learned, "loss_vision", "pictures and clips", "codes"),
        _chart(learned, "loss_text", "text and captions", "text"),
    ]
    return section(
        "training",
        "Training",
        facts_list(facts),
        element("div", charts, class_="cards broad"),
        note("The exported model was trained on another plan than this recipe's.")
        if learned.plan is not None and plan is not None and learned.plan != plan
        else None,
        note(
            "Nats an id, weighted as in training; faint: every step, strong: smoothed; a third curve: held-out packs "
            "(train.evaluation). Dashed and dotted: the held-out ids, with the ends of rows and frames of a picture "
            "counted as free."
        ),
    )


def _chart(learned: Learned, column: str, title: str, kind: str) -> Markup | None:
    points, held_out = _points(learned.metrics, column), _points(learned.held_out, column)
    if len(points) < 2:
        return None
    levels: list[Level] = []
    dots: list[Level] = []
    for name, label, style in (
        ("unigram_loss", "unigrams", "level"), ("bigram_loss", "bigrams", "level second"), ("loss", "held out", "dot")
    ):  # fmt: skip
        value = _across_modalities(learned.evaluation, kind, name)
        if value is not None:
            (dots if name == "loss" else levels).append(Level(value=value, label=label, kind=style))
    curves = [Curve(points=thinned(points), kind="raw"), Curve(points=thinned(smoothed(points)), kind="curve")]
    if len(held_out) > 1:
        curves.append(Curve(points=thinned(held_out), kind="held"))
    label = f"training loss of {title} over {len(points)} steps, last {points[-1][1]:.2f}"
    caption = element("h3", title, " ", element("small", "training loss"))
    return element("article", caption, line_chart(curves, levels, dots, label), class_="card")


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> list[tuple[float, float]]:
    return [(float(row["step"]), float(row[column])) for row in rows if row.get(column) is not None]


def _across_modalities(evaluation: Mapping[str, Any] | None, kind: str, name: str) -> float | None:
    """Average a figure over modalities as training weighs them, codes diluted by the markers around them."""
    rows = [row for row in (evaluation or {}).get("losses", ()) if row["kind"] == kind and name in row]
    weights = [row["training_ids"] / row.get("share_of_vision", 1.0) for row in rows]
    if not sum(weights):
        return None
    values = [row[name] * row.get("share_of_vision", 1.0) for row in rows]
    return float(np.average(values, weights=weights))


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average each point with those before it, exponentially, over a fortieth of the run, without a slow start."""
    keep = 1.0 - 1.0 / max(2.0, len(points) / 40)
    found, total, weight = [], 0.0, 0.0
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, total / weight))
    return found


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Take at most 300 points, the last one always."""
    step = -(-len(points) // _POINTS)
    return [*points[:-1:step], points[-1]]
