"""What a finished plan says about itself: where its windows and shards are, and how it came out.

`plan.json` is written last; it is what makes a plan exist, and the report and the trainer read it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.plan_border import Border
from tokenmill.manifests.plans import EPOCH_COLUMNS, PLAN_SCHEMA, SHARD_COLUMNS, WINDOW_COLUMNS
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.pipelines.plan_continue import continued_summary
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings


def describe_plan(
    plan: Snapshot,
    sources: Sequence[Snapshot],
    settings: PlanSettings,
    passes: Sequence[ShardPass],
    border: Border | None = None,
) -> None:
    """Publish `windows.parquet`, `shards.parquet` and, last, `plan.json`; `border` is where it goes on from."""
    folder = plan.folder
    tables = {
        "windows.parquet": table_bytes(_windows(plan), PLAN_SCHEMA),
        "shards.parquet": table_bytes(shard_table(sources, passes, border), PLAN_SCHEMA),
    }
    for name, data in tables.items():
        folder.store.put(folder.at(name), data)
    fault_point("plan:before-description")
    description = plan_summary(plan, sources, settings, passes)
    if border is not None:
        description["continues"] = continued_summary(plan, border, shard_table(sources, passes, border))
    description["tables"] = {name: sha256_hex(data) for name, data in tables.items()}
    description["digest"] = digest_of(description)
    folder.store.put(folder.at("plan.json"), (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())


def plan_summary(
    plan: Snapshot, sources: Sequence[Snapshot], settings: PlanSettings, passes: Sequence[ShardPass]
) -> dict[str, Any]:
    """Give the description as JSON values; `fill` is the share of all positions that hold ids of documents."""
    totals = plan.totals
    first = sources[0].folder.config.settings
    return {
        "schema": PLAN_SCHEMA,
        "plan": plan.folder.config.digest,
        "snapshot": plan.digest,
        "phase": settings.phase,
        "part": settings.part,
        "context": settings.context,
        "seed": settings.seed,
        "vision_weight": settings.vision_weight,
        "text_weight": settings.text_weight,
        "vocabulary": first["vocabulary"],
        "vocabulary_fingerprint": plan.folder.config.fingerprints["vocabulary"],
        "vision": next(
            (s.folder.config.settings["vision"] for s in sources if s.folder.config.settings.get("vision")), None
        ),
        "areas": {
            s.folder.config.settings["modality"]: s.folder.config.settings["area"]
            for s in sources
            if s.folder.config.settings.get("area")
        },
        "num_packs": plan.counts.out,
        "num_windows": len(plan.commits),
        "fill": totals["tokens"] / (settings.context * plan.counts.out),
        "counts": plan.counts.to_json(),
        "totals": {name: value for name, value in totals.items() if "." not in name},
        "templates": _grouped(totals, "template"),
        "sources": {s.folder.source: _source(s, totals, passes) for s in sources},
    }


def _source(snapshot: Snapshot, totals: dict[str, int], passes: Sequence[ShardPass]) -> dict[str, Any]:
    name = snapshot.folder.source
    epochs = {shard.repetition: shard.share for shard in passes if shard.source == name}
    return {
        "folder": snapshot.folder.path,
        "snapshot": snapshot.digest,
        "epochs": sum(epochs.values()),
        "tokens": totals.get(f"source.{name}.tokens", 0),
    }


def _grouped(totals: dict[str, int], prefix: str) -> dict[str, dict[str, int]]:
    """Turn `template.generation.tokens` and the like into nested mappings."""
    grouped: dict[str, dict[str, int]] = {}
    for name, value in totals.items():
        if name.startswith(f"{prefix}."):
            middle, _, last = name[len(prefix) + 1 :].rpartition(".")
            grouped.setdefault(middle, {})[last] = value
    return grouped


def _windows(plan: Snapshot) -> pl.DataFrame:
    rows = []
    first = 0
    for commit in plan.commits:
        packs = commit.file("packs")
        rows.append((commit.unit, first, commit.counts.out, commit.rows.name, packs.name if packs else ""))
        first += commit.counts.out
    return pl.DataFrame(rows, schema=dict(WINDOW_COLUMNS), orient="row")


def shard_table(sources: Sequence[Snapshot], passes: Sequence[ShardPass], border: Border | None) -> pl.DataFrame:
    """List the shards of some sources, with the epochs that `passes` and the plans before take them for."""
    epochs: Counter[str] = Counter()
    for one in passes:
        epochs[one.archive] += one.share  # type: ignore[assignment]  # a sum of shares
    before = dict(border.plan.shards.select("shard", "begun").iter_rows()) if border is not None else {}
    rows = [
        (s.folder.source, name, s.folder.at(c.rows.name), c.data.sha256, c.rows.sha256, float(epochs[name]),
         max(float(epochs[name]), before.get(name, 0.0)))
        for s in sources
        for c in s.commits
        for name in (s.folder.at(c.data.name),)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema={**SHARD_COLUMNS, **EPOCH_COLUMNS}, orient="row")
