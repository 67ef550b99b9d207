"""What a finished plan says about itself: where its windows and shards are, and how it came out.

`plan.json` is written last; it is what makes a plan exist, and the report and the trainer read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.plan_border import SAME_SHARD, Border
from tokenmill.manifests.plans import EPOCH_COLUMNS, PLAN_SCHEMA, SHARD_COLUMNS, WINDOW_COLUMNS
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.pipelines.plan_continue import continued_summary
from tokenmill.pipelines.plan_figures import cost_spread, grouped, mix_spread, source_figures
from tokenmill.pipelines.plan_mix import Mix
from tokenmill.settings_train import PlanSettings


def describe_plan(
    plan: Snapshot,
    sources: Sequence[Snapshot],
    settings: PlanSettings,
    mix: Mix,
    border: Border | None = None,
) -> None:
    """Publish `windows.parquet`, `shards.parquet` and, last, `plan.json`; `border` is where it goes on from."""
    folder = plan.folder
    shards = shard_table(sources, mix, border)
    tables = {
        "windows.parquet": table_bytes(_windows(plan), PLAN_SCHEMA),
        "shards.parquet": table_bytes(shards, PLAN_SCHEMA),
    }
    for name, data in tables.items():
        folder.store.put(folder.at(name), data)
    fault_point("plan:before-description")
    description = plan_summary(plan, sources, settings, mix)
    if border is not None:
        description["continues"] = continued_summary(plan, border, shards)
        for one in description["sources"].values():
            del one["epochs_got"]  # says nothing of a plan that has a part of its passes only
    description["tables"] = {name: sha256_hex(data) for name, data in tables.items()}
    description["digest"] = digest_of(description)
    folder.store.put(folder.at("plan.json"), (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())


def plan_summary(plan: Snapshot, sources: Sequence[Snapshot], settings: PlanSettings, mix: Mix) -> dict[str, Any]:
    """Give the description as JSON values."""
    totals, first = plan.totals, sources[0].folder.config.settings
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
        **_vision_fingerprint(sources),
        "areas": {
            s.folder.config.settings["modality"]: s.folder.config.settings["area"]
            for s in sources
            if s.folder.config.settings.get("area")
        },
        "num_packs": plan.counts.out,
        "num_windows": len(plan.commits),
        **_outcome(plan, settings),
        "counts": plan.counts.to_json(),
        "totals": {name: value for name, value in totals.items() if "." not in name and name not in _NO_SUMS},
        "templates": grouped(totals, "template"),
        "modalities": grouped(totals, "modality"),
        "sources": {s.folder.source: _source(s, totals, settings, mix) for s in sources},
        "tokens_asked": mix.tokens and round(mix.tokens),
    }


def _vision_fingerprint(sources: Sequence[Snapshot]) -> dict[str, str]:
    """Give the fingerprint of the tokenizer that made the codes, where the sources know it and agree."""
    found = {fingerprint for one in sources if (fingerprint := one.folder.config.fingerprints.get("vision"))}
    return {"vision_fingerprint": found.pop()} if len(found) == 1 else {}


_NO_SUMS = ("longest", "packs_bound")  # of windows: one is no sum, the other stands as `supply_bound`


def _outcome(plan: Snapshot, settings: PlanSettings) -> dict[str, Any]:
    """Say how well the plan came out.

    `fill` is the share of all positions that hold ids of documents, `supply_bound` the largest that any packing of
    these windows could reach, `longest` the ids of the longest document, pieces of it together.
    """
    totals, commits = plan.totals, plan.commits
    bound = totals.get("packs_bound", 0) * settings.context
    return {
        "fill": totals["tokens"] / (settings.context * plan.counts.out),
        "supply_bound": totals["tokens"] / bound if bound else None,
        "longest": max(commit.totals.get("longest", 0) for commit in commits),
        "window_mix": mix_spread(commits),
        "cost_spread": cost_spread(plan),
    }


def _source(snapshot: Snapshot, totals: Mapping[str, int], settings: PlanSettings, mix: Mix) -> dict[str, Any]:
    name = snapshot.folder.source
    figures = source_figures(grouped(totals, "source").get(name, {}), mix.epochs[name])
    figures |= {"folder": snapshot.folder.path, "snapshot": snapshot.digest}
    if name in mix.measured:
        found = mix.measured[name]
        figures |= {
            "share_asked": settings.of_source(name).share,
            "share": figures["tokens"] / totals["tokens"] if totals["tokens"] else 0.0,
            "measured": {"tokens": round(found.tokens), "files": found.read, "error": round(found.error, 6)},
        }
    return figures


def _windows(plan: Snapshot) -> pl.DataFrame:
    rows = []
    first = 0
    for commit in plan.commits:
        packs = commit.file("packs")
        rows.append((commit.unit, first, commit.counts.out, commit.rows.name, packs.name if packs else ""))
        first += commit.counts.out
    return pl.DataFrame(rows, schema=dict(WINDOW_COLUMNS), orient="row")


def shard_table(sources: Sequence[Snapshot], mix: Mix, border: Border | None) -> pl.DataFrame:
    """List the shards of some sources, with the epochs for which the mix, and the plans before, take them."""
    known = border.plan.shards if border is not None else pl.DataFrame(schema={**SHARD_COLUMNS, **EPOCH_COLUMNS})
    before = {row[:-1]: row[-1] for row in known.select(*SAME_SHARD, "begun").iter_rows()}
    rows = []
    for s in sources:
        epochs = float(mix.epochs[s.folder.source])
        for c in s.commits:
            name, index = s.folder.at(c.data.name), s.folder.at(c.rows.name)
            shard = (name, index, c.data.sha256, c.rows.sha256)
            rows.append((s.folder.source, *shard, epochs, max(epochs, before.get(shard, 0.0))))
    return pl.DataFrame(rows, schema={**SHARD_COLUMNS, **EPOCH_COLUMNS}, orient="row")
