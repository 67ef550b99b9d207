"""What a stage tells when it has run: a row for programs, and the row as one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RunError


def plan_row(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a plan is, of its description."""
    counts = description["counts"]
    told = {key: description[key] for key in ("plan", "num_packs", "context")}
    continued = {"continues": _continued(description["continues"])} if "continues" in description else {}
    fill = {"fill": round(description["fill"], 4)}
    return {**counts, **told, **fill, **continued, "snapshots": {"plan": description["snapshot"]}}


def _continued(continues: Mapping[str, Any]) -> dict[str, Any]:
    """Return which plan one goes on from, and how many documents it took over, has anew, lost."""
    return {key: continues[key] for key in ("plan", "step", "carried_documents", "new_documents", "gone_documents")}


def data_row(snapshots: Any) -> dict[str, Any]:
    """Add up the counts of a stage's snapshots; raises RunError where they do not add up."""
    counts: dict[str, Any] = {"in": 0, "kept": 0, "dropped": {}, "failed": {}}
    digests = {}
    counted = set()
    for snapshot in snapshots:
        digests[snapshot.folder.path] = snapshot.digest
        if snapshot.folder.source in counted:  # the scorers of a pass see the same samples
            continue
        counted.add(snapshot.folder.source)
        found = snapshot.counts.to_json()
        counts["in"] += found["in"]
        counts["kept"] += found["kept"]
        for why in ("dropped", "failed"):
            for reason, number in found[why].items():
                counts[why][reason] = counts[why].get(reason, 0) + number
    if sum(counts["dropped"].values()) + sum(counts["failed"].values()) + counts["kept"] != counts["in"]:
        raise RunError(f"counts do not add up: {counts}")
    return {**counts, "snapshots": digests}


def describe_row(row: Mapping[str, Any]) -> str:
    """Return a stage's row as one line: seconds, counts, reasons."""
    text = f"{row['stage']:<9} {row['seconds']:8.1f} s"
    if "in" in row:
        text += f"   in {row['in']:,}  kept {row['kept']:,}"
        for why in ("dropped", "failed"):
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(row[why].items()))
            text += f"  {why} {sum(row[why].values()):,}{f' ({reasons})' if reasons else ''}"
    continued = row.get("continues")
    if continued:
        text += (
            f"   from step {continued['step']:,} of plan {continued['plan'][:16]}: "
            f"{continued['carried_documents']:,} documents carried over, {continued['new_documents']:,} new, "
            f"{continued['gone_documents']:,} gone"
        )
    hidden = ("stage", "seconds", "in", "kept", "dropped", "failed", "out", "snapshots", "plan", "asked", "continues")
    told = {key: value for key, value in row.items() if key not in hidden}
    text += "   " + "  ".join(f"{key} {value}" for key, value in told.items())
    return text + "".join(f"\n          {_asked(totals)}" for totals in row.get("asked", {}).values())


def _asked(totals: Mapping[str, Any]) -> str:
    """Return what was asked just now for one column about one source, as one line."""
    from tokenmill.pipelines.asked_totals import told_totals

    left = totals["unanswered"]
    hint = f"; {left:,} have no good answer, --retry-failed asks them again" if left else ""
    return f"{totals['source']} {', '.join(totals['columns'])}: {told_totals(totals)}{hint}"
