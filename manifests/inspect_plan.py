"""Inspect a plan: its own report, from its three small tables; no window is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from tokenmill.manifests.plan_root import in_root
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import Store

_FOR_MACHINES = ("schema", "tables", "vocabulary_fingerprint", "digest")
_IN_WORDS = (
    "plan", "phase", "part", "context", "fill", "supply_bound", "num_packs", "num_windows", "windows", "counts",
)  # fmt: skip
_TABLES = ("sources", "templates", "modalities", "phases")


def describe_plan(store: Store, path: str) -> dict[str, Any]:
    """Return what plan.json says, and the sizes of its windows and shards.

    Raises ManifestError where there is no finished plan, or its tables were changed.
    """
    plan = open_plan(*(in_root(store, path) or (store, path)))
    packs = plan.windows["num_packs"]
    windows = {"windows": len(packs), "fewest_packs": packs.min(), "most_packs": packs.max()}
    shards = plan.shards.group_by(pl.col("source").cast(pl.String), maintain_order=True).len("shards")
    told = {name: value for name, value in plan.description.items() if name not in _FOR_MACHINES}
    return {**told, "windows": windows, "shards": dict(shards.rows())}


def render_plan(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a plan's report as lines of text: what is one thing, then tables, then counts and reasons."""
    counts = found["counts"]
    yield f"plan {found['plan'][:16]}, phase {found['phase']} ({found['part']}), context {found['context']:,}"
    fill = f"fill {found['fill']:.4f}"
    fill += f" of at most {found['supply_bound']:.4f}" if isinstance(found.get("supply_bound"), float) else ""
    windows = found["windows"]
    told = [*dict.fromkeys(f"{windows[name]:,}" for name in ("fewest_packs", "most_packs"))]
    yield f"{found['num_packs']:,} packs, {fill}; windows: {windows['windows']:,}, of {' to '.join(told)} packs"
    yield f"samples: {counts['in']:,} in, {counts['kept']:,} taken"
    for what in ("dropped", "failed"):
        for reason, number in sorted(counts[what].items(), key=lambda pair: -pair[1]):
            yield f"  {what} {reason}: {number:,}"
    for name in _TABLES:
        if isinstance(found.get(name), Mapping) and found[name]:
            yield ""
            yield from _table(name, found[name])
    yield ""
    shown = {*_TABLES, *_IN_WORDS}
    for name, value in found.items():
        if name not in shown and value not in (None, {}, []):
            yield from _rest(name, value)


def _table(name: str, rows: Mapping[str, Any]) -> Iterator[str]:
    """Yield a mapping of mappings as a table; what isn't a number in every row is left to `--json`."""
    columns = list(dict.fromkeys(key for row in rows.values() if isinstance(row, Mapping) for key in row))
    columns = [c for c in columns if all(isinstance(row.get(c, 0), int | float) for row in rows.values())]
    width = max(len(name), *(len(one) for one in rows))
    yield f"{name:<{width}}" + "".join(f"  {column:>12}" for column in columns)
    for one, row in rows.items():
        yield f"{one:<{width}}" + "".join(f"  {_number(row.get(column)):>12}" for column in columns)


def _rest(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        told = ", ".join(f"{key} {_number(one)}" for key, one in value.items())
        yield f"{name}: {told}"
    else:
        yield f"{name}: {_number(value)}"


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
