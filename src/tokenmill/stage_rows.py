"""What a stage tells when it has run, as one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_row(row: Mapping[str, Any]) -> str:
    """Return a stage's row as one line: seconds, counts, reasons."""
    text = f"{row['stage']:<9} {row['seconds']:8.1f} s"
    if "in" in row:
        text += f"   in {row['in']:,}  kept {row['kept']:,}"
        for why in ("dropped", "failed"):
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(row[why].items()))
            text += f"  {why} {sum(row[why].values()):,}{f' ({reasons})' if reasons else ''}"
    hidden = ("stage", "seconds", "in", "kept", "dropped", "failed", "out", "snapshots", "plan", "asked")
    told = {key: value for key, value in row.items() if key not in hidden}
    text += "   " + "  ".join(f"{key} {value}" for key, value in told.items())
    return text + "".join(f"\n          {_asked(totals)}" for totals in row.get("asked", {}).values())


def _asked(totals: Mapping[str, Any]) -> str:
    """Return what was asked just now for one column about one source, as one line."""
    from tokenmill.pipelines.asked_totals import told_totals

    left = totals["unanswered"]
    hint = f"; {left:,} have no good answer, --retry-failed asks them again" if left else ""
    return f"{totals['source']} {', '.join(totals['columns'])}: {told_totals(totals)}{hint}"
