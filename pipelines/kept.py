"""What `gc` has to keep for a recipe: what its chain resolves to now, and whatever plans and checkpoints still need.

The chain is walked without permission to work. Where it cannot be followed (units are missing, a source is gone),
everything from that stage on is kept, so an unfinished run loses nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, TokenmillError
from tokenmill.manifests.gc import Keep, Sweep, survey
from tokenmill.manifests.gc_apply import RootChangedError, apply
from tokenmill.manifests.identity import short
from tokenmill.manifests.rollups import read_ledger
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import stage_dir_at
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD, EXPORT_RECORD
from tokenmill.pipelines.answer_journal import FOLDER as JOURNAL
from tokenmill.pipelines.answers import is_paid_for
from tokenmill.pipelines.chain import STAGES, Chain, ChainOptions
from tokenmill.recipe import Recipe

_LOOKS = 2  # before the one whose failure is told


@dataclass(frozen=True, kw_only=True)
class GcOptions:
    """What may go beside what nobody names.

    Attributes:
        older_than_s: nothing younger is touched, by the store's clock.
        all_snapshots: keep every published snapshot of the recipe's folders.
        old_settings: let folders of settings go that the recipe no longer has, unless a plan needs them.
        old_plans: let finished plans go that are not the recipe's and that no checkpoint or export names.
        old_captions: let answers of engines that cost something go, where the recipe no longer has their column;
            `old_settings` alone never does.
    """

    older_than_s: float = 24 * 3600.0
    all_snapshots: bool = False
    old_settings: bool = False
    old_plans: bool = False
    old_captions: bool = False


@dataclass(kw_only=True)
class _Resolved:
    """What the recipe's chain resolves to, as far as it could be followed."""

    stages: set[str] = field(default_factory=set)
    folders: dict[str, Keep] = field(default_factory=dict)
    stopped: str = ""


def collect(recipe: Recipe, options: GcOptions, *, apply_it: bool) -> Sweep:
    """Find what nobody names under a recipe's root and, if told so, remove it.

    Raises:
        RootChangedError: runs at work under the root published something at every look; nothing was removed.
    """
    for _ in range(_LOOKS):
        store, sweep = _surveyed(recipe, options, needs_clock=apply_it)
        if not apply_it:
            return sweep
        with contextlib.suppress(RootChangedError):
            apply(store, sweep)
            return sweep
    store, sweep = _surveyed(recipe, options, needs_clock=True)
    apply(store, sweep)
    return sweep


def _surveyed(recipe: Recipe, options: GcOptions, *, needs_clock: bool) -> tuple[Store, Sweep]:
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True))
    keeps, notes = _keeps(chain.store, _resolve(chain, options), options)
    sweep = survey(chain.store, keeps, older_than_s=options.older_than_s, needs_clock=needs_clock)
    sweep.notes[:0] = notes
    return chain.store, sweep


def _resolve(chain: Chain, options: GcOptions) -> _Resolved:
    found = _Resolved()
    for stage in STAGES:
        try:
            if stage == "plan":
                found.folders |= {plan.folder.path: Keep() for plan in chain.plans.values()}
            else:
                for snapshot in chain.snapshots(stage):
                    found.folders[snapshot.folder.path] = _keep(snapshot, options)
        except TokenmillError as error:
            found.stopped = f"{stage} and what follows it is kept whole: {error}"
            break
        found.stages.add(stage)
    return found


def _keep(snapshot: Snapshot, options: GcOptions) -> Keep:
    """Keep a current snapshot, and its records even where it was not published yet."""
    if options.all_snapshots:
        return Keep()
    records = frozenset((commit.unit, commit.attempt) for commit in snapshot.commits)
    return Keep(snapshots=frozenset({short(snapshot.digest)}), records=records)


def _keeps(store: Store, resolved: _Resolved, options: GcOptions) -> tuple[dict[str, Keep], list[str]]:
    """Say of every stage folder and plan under the root what to keep of it."""
    keeps = dict(resolved.folders)
    notes = [resolved.stopped] if resolved.stopped else []
    for stage in STAGES[:-1]:
        for path in _stage_folders(store, stage):
            if path not in keeps:
                keeps[path] = Keep()
                if stage in resolved.stages:
                    keeps[path] = _keep_of_other_settings(store, path, options, notes)
            if keeps[path].whole and is_paid_for(store, path):
                keeps[path] = _all_answers(store, path, keeps[path])
    needed = _plans_in_use(store) if options.old_plans else set()
    for path in _stage_folders(store, "plans"):
        if path in keeps or "plan" not in resolved.stages:
            keeps[path] = Keep()
        elif not store.exists(f"{path}/plan.json") or (options.old_plans and path.rsplit("/", 1)[-1] not in needed):
            keeps[path] = Keep(snapshots=frozenset(), whole=False, kind="plan")
        else:
            keeps[path] = Keep()
            notes.append(f"{path}: not the recipe's plan any more; kept (--old-plans lets it go if no run needs it)")
    return keeps, notes


def _keep_of_other_settings(store: Store, path: str, options: GcOptions, notes: list[str]) -> Keep:
    """Say what to keep of a folder that the recipe does not lead to any more; answers that were paid for by default."""
    if path.startswith("takedown/"):
        return Keep(snapshots=frozenset(), whole=False, kind="superseded")
    is_paid = is_paid_for(store, path)
    if options.old_captions if is_paid else options.old_settings:
        return Keep(snapshots=frozenset(), whole=False, kind="settings")
    flag = "--old-captions lets the paid answers go" if is_paid else "--old-settings lets it go"
    notes.append(f"{path}: of settings the recipe no longer has; kept ({flag})")
    return Keep()


def _all_answers(store: Store, path: str, keep: Keep) -> Keep:
    """Keep every answer that was paid for, whatever the selection: in the newest record of each unit, and in journals.

    The snapshots and earlier attempts of a column the recipe has go as elsewhere: a newer attempt holds all of them. So
    do units in which nothing was asked.
    """
    records: frozenset[tuple[str, int]] = frozenset()
    with contextlib.suppress(ManifestError):  # is left alone anyway
        ledger = read_ledger(stage_dir_at(store, path))[0].table.filter(pl.col("rows_in") > 0)
        records = frozenset(ledger.select("unit", "attempt").iter_rows())
    return replace(keep, records=keep.records | records, beside=(f"{JOURNAL}/",))


def _stage_folders(store: Store, stage: str) -> Iterator[str]:
    for source in store.folders(stage):
        for name in store.folders(f"{stage}/{source}"):
            if any(True for _ in store.names(f"{stage}/{source}/{name}")):  # an emptied folder stays on a local disk
                yield f"{stage}/{source}/{name}"


def _plans_in_use(store: Store) -> set[str]:
    """Return the 16 digits of every plan that a checkpoint or an export names; raises ManifestError on damage."""
    found = set()
    for run in store.folders("checkpoints"):
        for name in store.folders(f"checkpoints/{run}"):
            path = f"checkpoints/{run}/{name}"
            for plan in (
                _told(store, f"{path}/{CHECKPOINT_RECORD}", "loader", "plan_id"),
                _told(store, f"{path}/{EXPORT_RECORD}", "plan"),
            ):
                if isinstance(plan, str):
                    found.add(short(plan))
    return found


def _told(store: Store, path: str, *keys: str) -> Any:
    """Return a value of a JSON file; None where there is no such file or value (training that had no plan)."""
    if not store.exists(path):
        return None
    try:
        value = json.loads(store.read_bytes(path))
    except ValueError as error:
        raise ManifestError(f'{path}: cannot be read, so no plan may go; run "tokenmill verify" ({error})') from error
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
