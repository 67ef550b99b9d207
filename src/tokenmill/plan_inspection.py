"""`tokenmill inspect PLAN` beyond its report: a pack as text and pictures, a step and where its samples come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.plan_root import placed_in_root
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store

_WIDEST = 60  # of a column that people read
_SHOWN = ("pack", "slot", "source", "key", "template", "length", "urls", "licence", "shard", "sample")  # of sources


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """What of a plan is looked at: one pack, or the packs of a step (`global_packs` a step), or their sources."""

    pack: int | None = None
    step: int | None = None
    global_packs: int | None = None
    sources: bool = False

    def check(self) -> None:
        """Raise RecipeError where the options do not go together."""
        if self.pack is not None and self.step is not None:
            raise RecipeError("--pack and --step: one at a time")
        if self.sources and self.pack is None and self.step is None:
            raise RecipeError("--sources: goes with --step S or --pack N")
        if self.global_packs is not None and (self.step is None or self.global_packs < 1):
            raise RecipeError(f"--global-packs {self.global_packs}: a number from 1 on, which goes with --step")
        if self.step is not None and self.step < 0:
            raise RecipeError(f"--step {self.step}: steps count from 0")


def inspect_plan(
    path: str, view: PlanView, storage: Mapping[str, Any], picture_to: Path | None = None
) -> tuple[dict[str, Any], str]:
    """Describe part of the plan at a URL or local path, as JSON values and as text.

    Pictures of a pack are written into `picture_to` (default: the current folder). Raises ManifestError for what is no
    plan or has no such pack, RecipeError for options that do not go together or a step of unknown size.
    """
    view.check()
    store = open_store("." if path == "plan.json" else path.rstrip("/").removesuffix("/plan.json"), storage)
    if not store.exists("plan.json"):
        raise ManifestError(f"{path}: no finished plan there, and --pack and --step look into one")
    plan = open_plan(*placed_in_root(store, ""))
    if view.pack is not None and not view.sources:
        return _pack(plan, view.pack, picture_to or Path())
    packs, head = _packs(plan, view)
    if not view.sources:
        return _step(plan, packs, head)
    from tokenmill.manifests.plan_sources import sources_of_packs

    found = sources_of_packs(plan, packs)
    faults = found["fault"].drop_nulls().len()
    told = {**head, "documents": found.to_dicts(), "faults": faults}
    return told, "\n".join([*_head_lines(plan, packs, head), *_table(found), *_fault_lines(found)])


def _pack(plan: Plan, pack: int, picture_to: Path) -> tuple[dict[str, Any], str]:
    from tokenmill.inspection import open_decoders
    from tokenmill.pack_inspection import describe_pack, render_pack

    found = describe_pack(plan, pack, open_decoders(plan.description), picture_to)
    return found, render_pack(found)


def _packs(plan: Plan, view: PlanView) -> tuple[list[int], dict[str, Any]]:
    """Return the packs that are looked at, and what says which they are."""
    if view.pack is not None:
        if not 0 <= view.pack < plan.num_packs:
            raise ManifestError(f"{plan.folder.path}: has packs 0 to {plan.num_packs - 1:,}, no pack {view.pack:,}")
        return [view.pack], {"kind": "pack", "plan": plan.plan_id, "pack": view.pack}
    assert view.step is not None
    size = view.global_packs or _known_size(plan)
    per_epoch, step = -(-plan.num_packs // size), _own_step(plan, view.step)
    first = step % per_epoch * size
    packs = list(range(first, min(first + size, plan.num_packs)))
    head = {"kind": "step", "plan": plan.plan_id, "step": view.step, "epoch": step // per_epoch}
    return packs, {**head, "global_packs": size, "packs": [packs[0], packs[-1] + 1]}


def _own_step(plan: Plan, step: int) -> int:
    """Return the plan's own number of a run's step: a plan that continues another begins where it takes over."""
    before = plan.description.get("continues")
    if not before:
        return step
    if step < before["step"]:
        what = f"takes over at step {before['step']:,}; look into {before['folder']}, which it continues"
        raise RecipeError(f"--step {step}: {plan.folder.path} {what}")
    return step - int(before["step"])


def _known_size(plan: Plan) -> int:
    """Return the packs in a step of the runs on this plan; raises RecipeError where there is none, or several sizes."""
    from tokenmill.pipelines.takedown_plans import states_of_runs

    runs = [state for state in states_of_runs(plan.folder.store) if state["plan_id"] == plan.plan_id]
    sizes = {int(state["global_packs"]) for state in runs if "global_packs" in state}
    if not sizes and (before := plan.description.get("continues")):
        sizes = {int(before["global_packs"])}
    if len(sizes) != 1:
        what = f"runs on this plan have {sorted(sizes)} packs a step" if sizes else "no run of this plan is there"
        raise RecipeError(f"--step: {what}; give --global-packs G (train.global_packs_per_step of its recipe)")
    return sizes.pop()


def _step(plan: Plan, packs: Sequence[int], head: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Describe the packs of a step: what each holds and costs."""
    rows = []
    for pack in packs:
        cost, documents = plan.cost(pack), plan.documents(pack)
        rows.append((pack, len(documents), cost.tokens, cost.squares, cost.weight, cost.tokens / plan.context))
    names = ("pack", "documents", "tokens", "squares", "weight", "fill")
    table = pl.DataFrame(rows, schema=names, orient="row")
    sums = {name: table[name].sum() for name in ("documents", "tokens", "squares", "weight")}
    return {**head, **sums, "rows": table.to_dicts()}, "\n".join([*_head_lines(plan, packs, head), *_table(table)])


def _head_lines(plan: Plan, packs: Sequence[int], head: Mapping[str, Any]) -> Iterator[str]:
    yield f"kind: {head['kind']}"
    where = f"step {head['step']:,} (epoch {head['epoch']})" if "step" in head else f"pack {head['pack']:,}"
    count = len(list(packs))
    size = (
        f": packs {head['packs'][0]:,} to {head['packs'][1] - 1:,}, {count} of {plan.num_packs:,}" if count > 1 else ""
    )
    yield f"{where} of plan {plan.plan_id[:16]}, phase {plan.phase}{size}"


def _table(table: pl.DataFrame) -> Iterator[str]:
    """Yield a table as aligned text; long values lose their middle."""
    names = [name for name in _SHOWN if name in table.columns] if "key" in table.columns else table.columns
    columns = [[_cell(value) for value in table[name].to_list()] for name in names]
    widths = [max([len(name), *map(len, column)]) for name, column in zip(names, columns, strict=True)]
    for row in (names, *zip(*columns, strict=True)):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(value) if isinstance(value, list) else str(value or "-")
    half = _WIDEST // 2
    return (text if len(text) <= _WIDEST else f"{text[:half]}…{text[-half:]}") or "-"


def _fault_lines(found: pl.DataFrame) -> Iterator[str]:
    for shard, sample, fault in found.filter(pl.col("fault").is_not_null()).select("shard", "sample", "fault").rows():
        yield f"{shard}, sample {sample}: {fault}"
