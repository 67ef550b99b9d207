"""Which packs of which plans hold taken-down samples, and at which steps a training run had consumed them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.identity import short
from tokenmill.manifests.plan_border import first_step, plans_before
from tokenmill.manifests.plans import Plan, open_plan, plan_paths, read_named_table
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD, EXPORT_RECORD
from tokenmill.pipelines.takedown_find import Tokenized


def plans_with(store: Store, tokenized: Sequence[Tokenized]) -> list[dict[str, Any]]:
    """Return a row for every finished plan that holds one of the samples: its packs, and the runs that saw them."""
    if not tokenized:
        return []
    wanted = pl.DataFrame(
        [(part.archive, row) for part in tokenized for row in part.rows],
        schema={"shard": pl.String, "sample": pl.Int32},
        orient="row",
    ).unique()
    runs = states_of_runs(store)
    rows = []
    for path in sorted(name for phase in store.folders("plans") for name in plan_paths(store, phase)):
        plan = open_plan(store, path)
        packs = packs_with(plan, wanted)
        if packs:
            seen = [state for state in runs if state["plan_id"] == plan.plan_id]
            told = [seen_by(state, packs, plan.num_packs, first_step(plan.description)) for state in seen]
            rows.append({"plan": path, "num_packs": plan.num_packs, "packs": packs, "runs": told})
    return rows


def packs_with(plan: Plan, wanted: pl.DataFrame) -> list[int]:
    """Return the packs, numbered over the whole plan, that hold any of some rows (`shard`, `sample`)."""
    if not set(wanted["shard"]) & set(plan.shards["shard"]):
        return []
    packs: set[int] = set()
    for row in plan.windows.iter_rows(named=True):
        documents = read_named_table(plan.folder.store, plan.folder.at(row["documents"]), ["pack", "shard", "sample"])
        found = documents.cast({"shard": pl.String}).join(wanted, on=["shard", "sample"], how="semi")
        packs.update(row["first_pack"] + pack for pack in found["pack"])
    return sorted(packs)


def seen_by(state: Mapping[str, Any], packs: Sequence[int], num_packs: int, first: int = 0) -> dict[str, Any]:
    """Tell which of some packs a run had consumed by its newest checkpoint on the plan, and at which steps.

    `first` is the run's step at which the plan took over from the one before; the run's steps are told.
    Where only an exported model is left, nobody knows how far it had come: all packs may have been seen.
    """
    if "epoch" not in state:
        return {"run": state["run"], "steps_done": None, "steps": [], "packs_seen": list(packs)}
    size = int(state["global_packs"])
    per_epoch = -(-num_packs // size)
    done = int(state["epoch"]) * per_epoch + int(state["next_pack"]) // size
    steps = [epoch * per_epoch + pack // size for epoch in range(int(state["epoch"]) + 1) for pack in packs]
    return {
        "run": state["run"],
        "steps_done": first + done,
        "global_packs_per_step": size,
        "steps": sorted({first + step for step in steps if step < done}),
        "packs_seen": [pack for pack in packs if pack // size < done],
    }


def states_of_runs(store: Store) -> list[dict[str, Any]]:
    """Return, with the run's name, the loader's newest state on every plan a run was trained on.

    A run whose checkpoints on a plan are gone, but which exported a model of it, has a state that names the plan alone.
    One that went on with another plan has consumed the plan before up to where that took over.
    """
    states = []
    for run in store.folders("checkpoints"):
        by_plan: dict[str, dict[str, Any]] = {}
        for step in sorted(store.folders(f"checkpoints/{run}")):
            folder = f"checkpoints/{run}/{step}"
            if store.exists(f"{folder}/{EXPORT_RECORD}") and (
                plan := _exported_plan(store, f"{folder}/{EXPORT_RECORD}")
            ):
                by_plan.setdefault(plan, {"plan_id": plan})
            if step.startswith("step-") and store.exists(f"{folder}/{CHECKPOINT_RECORD}"):
                state = _loader_state(store, f"{folder}/{CHECKPOINT_RECORD}")
                by_plan |= {state["plan_id"]: state} if state else {}
        for plan in list(by_plan):
            for before in _states_before(store, plan):
                by_plan.setdefault(before["plan_id"], before)
        states += [{**state, "run": run} for state in by_plan.values()]
    return states


def _states_before(store: Store, plan_id: str) -> Iterator[dict[str, Any]]:
    """Yield where the plans were left that a plan goes back to, as far as they are still there."""
    for phase in store.folders("plans"):
        for _, description in plans_before(store, f"plans/{phase}/{short(plan_id)}"):
            if before := description.get("continues"):
                place = {key: before[key] for key in ("phase", "epoch", "next_pack", "global_packs")}
                yield {"plan_id": before["plan"], **place}


def _exported_plan(store: Store, name: str) -> str | None:
    try:
        plan: str | None = json.loads(store.read_bytes(name)).get("plan")
    except (ValueError, AttributeError, StorageError) as error:
        raise ManifestError(f"{name}: does not say which plan the model was trained on ({error})") from error
    return plan


def _loader_state(store: Store, name: str) -> dict[str, Any] | None:
    """Return what a checkpoint says about its place in a plan; None where the run had none."""
    try:
        state: dict[str, Any] | None = json.loads(store.read_bytes(name)).get("loader")
        return state and {key: state[key] for key in ("plan_id", "phase", "epoch", "next_pack", "global_packs")}
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        raise ManifestError(f"{name}: does not say which plan it was trained on ({error})") from error
