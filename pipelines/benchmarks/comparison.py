"""A benchmark's scores beside those of Emu3's paper (EMU3.md §6).

The paper's stand for its 8 B model, drawn and scored by its authors: a scale, and a contest only for a model and
settings like theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.pipelines.benchmarks.benchmark import Benchmark, Score


def compared(benchmark: Benchmark, scores: Sequence[Score]) -> dict[str, Any]:
    """Return the scores as rows, each with the paper's figure by variant where it has one."""
    measures = [score.measure for score in scores]
    told = [*measures, *(name for of in benchmark.paper.values() for name in of if name not in measures)]
    known = {score.measure: score for score in scores}
    rows = []
    for measure in dict.fromkeys(told):
        score = known.get(measure)
        paper = {variant: of[measure] for variant, of in benchmark.paper.items() if measure in of}
        rows.append(
            {
                "measure": measure,
                "value": score.value if score else None,
                "count": score.count if score else None,
                "paper": paper,
            }
        )
    return {"benchmark": benchmark.title, "rows": rows}


def render(found: dict[str, Any]) -> str:
    """Return the rows as a table."""
    variants = list(dict.fromkeys(variant for row in found["rows"] for variant in row["paper"]))
    lines = [(found["benchmark"], "this", "samples", *variants)]
    for row in found["rows"]:
        count = "" if row["count"] is None else f"{row['count']:,}"
        lines.append((row["measure"], _figure(row["value"]), count, *(_figure(row["paper"].get(v)) for v in variants)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) > 1.5 else f"{value:.4f}"
