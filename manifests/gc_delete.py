"""Removing what nobody names, in an order a reader never notices: description, then records, then files.

A snapshot without its description does not exist, a record that no snapshot names is only waited for, a file that no
record names is never read. So a removal that dies anywhere leaves a sound folder with more to remove. Rollups are
caches of records; they go before the records they speak of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tokenmill.faults import fault_point
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import read_description
from tokenmill.manifests.stagedir import StageDir, read_table
from tokenmill.manifests.storage import Store

_BATCH = 1000  # objects of one request, where the store takes many


def delete_all(store: Store, paths: Iterable[str]) -> None:
    """Remove objects in the order given, a thousand a request where the store can."""
    wanted = list(paths)
    for start in range(0, len(wanted), _BATCH):
        store.delete_many(wanted[start : start + _BATCH])
        fault_point("gc:after-delete")


def delete_snapshots(folder: StageDir, names: Collection[str]) -> None:
    """Remove snapshots by their 16 digits, finished or not."""
    there = {entry.path for entry in folder.store.files(folder.at("snapshots"))}
    for suffix in (".json", ".parquet"):
        wanted = [folder.at(f"snapshots/{name}{suffix}") for name in sorted(names)]
        delete_all(folder.store, [path for path in wanted if path in there])


def delete_snapshots_naming(folder: StageDir, records: Collection[tuple[str, int]]) -> None:
    """Remove every snapshot that names one of some records (unit, attempt)."""
    names = set()
    for entry in folder.store.files(folder.at("snapshots")):
        if entry.path.endswith(".parquet"):
            units = read_table(folder.store, entry.path, ["unit", "attempt"])
            if any(row in records for row in units.rows()):
                names.add(entry.path.rsplit("/", 1)[-1].removesuffix(".parquet"))
    delete_snapshots(folder, names)


def delete_records(folder: StageDir, records: Collection[tuple[str, int]]) -> None:
    """Remove records (unit, attempt), and before them every rollup of the folder, which may speak of them."""
    if records:
        delete_all(folder.store, [entry.path for entry in folder.store.files(folder.at("rollups"))])
        delete_all(folder.store, [folder.at(f"commits/{unit}.{attempt}.json") for unit, attempt in sorted(records)])


def delete_units(folder: StageDir, commits: Sequence[Commit], others: Iterable[Commit]) -> None:
    """Remove units: their records, then those of their files that no record of `others` names."""
    delete_records(folder, {(commit.unit, commit.attempt) for commit in commits})
    used = {entry.name for commit in others for entry in commit.files}
    there = {entry.path for entry in folder.store.files(folder.path)}
    ours = [entry.name for commit in commits for entry in commit.files if not entry.is_outside]
    doomed = {folder.at(name) for name in ours if name not in used}
    delete_all(folder.store, sorted(doomed & there))


def snapshot_parents(folder: StageDir, name: str) -> tuple[str, dict[str, str]]:
    """Return a snapshot's full digest and its parents; raises ManifestError if its description is damaged."""
    value = read_description(folder, name)
    return str(value["digest"]), {str(key): str(parent) for key, parent in value["parents"].items()}
