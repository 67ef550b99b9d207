"""What a stage tells when it has run: a row for programs, and the row as one line for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RunError


def plan_row(descriptions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the plans of some phases are, of their descriptions: of one all of it, of several under `plans`."""
    rows = {phase: _plan_row(description) for phase, description in descriptions.items()}
    if len(rows) == 1:
        return next(iter(rows.values()))
    counts = {name: sum(row[name] for row in rows.values()) for name in ("in", "kept", "out", "num_packs")}
    lost: dict[str, Any] = {"dropped": Counter(), "failed": Counter()}
    for row in rows.values():
        for why, reasons in lost.items():
            reasons.update(row[why])
    snapshots = {f"plan/{phase}": row["snapshots"]["plan"] for phase, row in rows.items()}
    return {**counts, **{why: dict(reasons) for why, reasons in lost.items()}, "plans": rows, "snapshots": snapshots}


def _plan_row(description: Mapping[str, Any]) -> dict[str, Any]:
    counts = description["counts"]
    told = {key: description[key] for key in ("plan", "num_packs", "context")}
    told |= {"fill": round(description["fill"], 4)}
    if description.get("supply_bound"):
        told |= {"supply_bound": round(description["supply_bound"], 4)}
    if "continues" in description:
        told |= {"continues": _continued(description["continues"])}
    return {**counts, **told, "sources": description["sources"], "snapshots": {"plan": description["snapshot"]}}


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
    hidden = (
        "stage", "seconds", "in", "kept", "dropped", "failed", "out", "snapshots", "plan", "plans", "sources", "asked",
        "continues", "jobs",
    )  # fmt: skip
    told = {
        key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items() if key not in hidden
    }
    text += "   " + "  ".join(f"{key} {value}" for key, value in told.items())
    lines = [_asked(totals) for totals in row.get("asked", {}).values()]
    lines += [_job(name, counts) for name, counts in row.get("jobs", {}).items()]
    for phase, one in row.get("plans", {"": row} if "sources" in row else {}).items():
        head = f"phase {phase}: packs {one['num_packs']:,} of {one['context']:,}  fill {one['fill']}"
        lines += [head] * bool(phase) + _shares(one)
    return text + "".join(f"\n          {line}" for line in lines)


def _job(name: str, row: Mapping[str, Any]) -> str:
    """Return what a job over a table has done, as one line."""
    text = f"{name}: in {row['in']:,}  kept {row['kept']:,}"
    if row["failed"]:
        text += f"  failed {', '.join(f'{reason} {number:,}' for reason, number in sorted(row['failed'].items()))}"
    made = [f"{row[what]:,} {what}" for what in ("pictures", "clips", "answers") if row.get(what)]
    return f"{text}  {', '.join(made) or 'nothing drawn'}  {row['folder']}"


def _told_continued(row: Mapping[str, Any]) -> list[str]:
    found = row.get("continues")
    if not found:
        return []
    return [
        f"from step {found['step']:,} of plan {found['plan'][:16]}: {found['carried_documents']:,} documents carried "
        f"over, {found['new_documents']:,} new, {found['gone_documents']:,} gone"
    ]


def _shares(row: Mapping[str, Any]) -> list[str]:
    from tokenmill.pipelines.plan_figures import told_shares, warnings_of

    return [*_told_continued(row), *told_shares(row), *(f"look at this: {warning}" for warning in warnings_of(row))]


def _asked(totals: Mapping[str, Any]) -> str:
    """Return what was asked just now for one column about one source, as one line."""
    from tokenmill.pipelines.asked_totals import told_totals

    left = totals["unanswered"]
    hint = f"; {left:,} have no good answer, --retry-failed asks them again" if left else ""
    return f"{totals['source']} {', '.join(totals['columns'])}: {told_totals(totals)}{hint}"


def caption_row(chain: Any) -> dict[str, Any]:
    """Ask, then choose; returns what was kept, and by column what was asked just now."""
    from tokenmill.pipelines.asked_totals import asked_in, column_folders

    _ = chain.select  # what stands before it is complete, or this ends here
    columns = column_folders(chain)
    before = asked_in(columns)
    answers = {snapshot.folder.path: snapshot.digest for snapshot in chain.snapshots("caption")}
    row = data_row(chain.snapshots("choose"))
    asked = {
        path: {"source": one.folder.source, "columns": one.names, **(totals - before[path]).to_json()}
        for path, totals in asked_in(columns).items()
        for one in (columns[path],)
    }
    for snapshot in chain.snapshots("caption"):
        if snapshot.folder.path in asked:  # of the samples that are kept now
            asked[snapshot.folder.path]["unanswered"] = snapshot.totals.get("unanswered", 0)
    return {**row, **({"asked": asked} if asked else {}), "snapshots": answers | row["snapshots"]}
