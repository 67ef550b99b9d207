"""Removing what a survey found, while others may be at work under the same root.

First every snapshot, then folder by folder its records and files, then leftovers. The root is listed again right before
the first removal and each folder right before its own: a snapshot or plan that came in between stops the removal or
spares the folder. What is left is the time between a listing and the requests that follow it (docs/housekeeping.md).
"""

from __future__ import annotations

from tokenmill.errors import RunError
from tokenmill.manifests.gc import FolderSweep, Sweep, files_of, is_description, is_old, record_of
from tokenmill.manifests.gc_delete import delete_all, delete_records, delete_snapshots
from tokenmill.manifests.storage import Store, Stored


class RootChangedError(RunError):
    """A snapshot or plan was published between the survey and the removal; nothing was removed."""


def apply(store: Store, sweep: Sweep) -> None:
    """Remove what a survey found; raises RootChangedError if the root has changed since, before anything is gone."""
    fresh = _fresh(store.files(), sweep)
    if fresh:
        raise RootChangedError(
            f"{store.url}/{fresh[0]}: was written while gc looked around; nothing was removed, run gc again"
        )
    for one in sweep.folders:
        delete_all(store, [path for path in one.rest if is_description(path)])
        delete_snapshots(one.folder, one.snapshots)
    for one in sweep.folders:
        if one.records or one.files or one.rest:
            _clear(store, one, sweep)
    delete_all(store, sweep.loose)
    for left in sweep.unfinished:
        store.abandon(left)


def _clear(store: Store, one: FolderSweep, sweep: Sweep) -> None:
    """Remove a folder's records, then its files, then, where nothing else is left, what describes it."""
    entries = store.files(one.folder.path)
    if fresh := _fresh(entries, sweep):
        sweep.notes.append(f"{one.folder.path}: left alone, a run is at work there ({fresh[0]})")
        return
    delete_records(one.folder, one.records)
    delete_all(store, _still_unnamed(one, entries, sweep))
    left = {entry.path for entry in store.files(one.folder.path)} if one.rest else set()
    if left and left <= set(one.rest):
        config = one.folder.at("config.json")
        delete_all(store, sorted(left - {config}))
        delete_all(store, [config])  # last: a folder without it is known for the rest of a removal


def _fresh(entries: list[Stored], sweep: Sweep) -> list[str]:
    """Name the snapshots and plans that the survey did not see."""
    return [entry.path for entry in entries if is_description(entry.path) and entry.path not in sweep.described]


def _still_unnamed(one: FolderSweep, entries: list[Stored], sweep: Sweep) -> list[str]:
    """Return the files that may go; one that was written anew, or that a new record names, stays."""
    records = {key for e in entries if "/commits/" in e.path and (key := record_of(e.path))}
    fresh = {one.folder.at(name) for names in files_of(one.folder, records - one.seen).values() for name in names}
    there = {entry.path for entry in entries if is_old(entry, sweep)}
    return [path for path in one.files if path in there and path not in fresh]
