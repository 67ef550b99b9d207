"""Finding what nobody names under a root: what killed runs left, and what newer results superseded.

Works from one listing of the whole root and the records of every folder, so a dry run costs one small read a unit. What
is kept is decided elsewhere (`Keep`); this file only follows names: snapshots to their parents, records and files.
Nothing is touched that is younger than a limit by the store's own clock: a run may be writing it.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.gc_delete import snapshot_parents
from tokenmill.manifests.stagedir import ASIDE, StageDir, read_table, stage_dir_at
from tokenmill.manifests.storage import Store, Stored, Unfinished
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD, read_checkpoint_files

PROBE = "gc-probe-"
_THREADS = 16
_PLAN_FILES = ("plan.json", "windows.parquet", "shards.parquet", "mix.json", "excluded.parquet", "seen.parquet")
Record = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What one folder has to keep: snapshots by their 16 digits (None: all, and all records), and further records.

    `whole` False lets the folder itself go, if nothing in it is named; `kind` is what its unnamed content counts as;
    `beside` are folders in it that stay as they are, though no record names what they hold.
    """

    snapshots: frozenset[str] | None = None
    records: frozenset[Record] = frozenset()
    whole: bool = True
    kind: str = "superseded"
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Doomed:
    """One object that may go, and why: `orphan`, `superseded`, `settings`, `plan`, `leftover` or `upload`."""

    path: str
    bytes: int
    kind: str


@dataclass(kw_only=True)
class FolderSweep:
    """What may go of one folder."""

    folder: StageDir
    snapshots: set[str] = field(default_factory=set)
    records: set[Record] = field(default_factory=set)
    seen: set[Record] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)  # description, logs and rollups, where all of the folder may go


@dataclass(kw_only=True)
class Sweep:
    """Everything that may go under a root, and what a person should know."""

    folders: list[FolderSweep] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    doomed: list[Doomed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    described: frozenset[str] = (
        frozenset()
    )  # every finished snapshot and plan there was, by the path of its description
    before_s: float = 0.0

    def totals(self) -> dict[str, dict[str, int]]:
        """Count objects and bytes by kind."""
        counts = Counter(one.kind for one in self.doomed)
        return {
            kind: {"objects": counts[kind], "bytes": sum(one.bytes for one in self.doomed if one.kind == kind)}
            for kind in sorted(counts)
        }


def survey(store: Store, keeps: Mapping[str, Keep], *, older_than_s: float, needs_clock: bool = True) -> Sweep:
    """Find what may go; `keeps` speaks of every stage folder under the root.

    Without `needs_clock`, this machine's clock stands in for that of a store that cannot be written to.
    """
    listing, now = _listing(store, needs_clock=needs_clock)
    described = frozenset(entry.path for entry in listing if is_description(entry.path))
    sweep = Sweep(before_s=now - older_than_s, described=described)
    inside: dict[str, list[Stored]] = {path: [] for path in keeps}
    for entry in listing:
        folder = _nearest(entry.path, inside)
        if folder is not None:
            inside[folder].append(entry)
        elif entry.path.startswith(PROBE) and is_old(entry, sweep):
            sweep.loose.append(entry.path)
            sweep.doomed.append(Doomed(entry.path, entry.size, "leftover"))
    folders = _opened(store, inside, sweep)
    keeps, named = _named(folders, keeps, inside, sweep)
    for path, opened in folders.items():
        try:
            _survey_folder(opened, keeps[path], named.get(path, set()), inside[path], sweep)
        except (ManifestError, StorageError) as error:
            sweep.notes.append(f'{path}: left alone; run "tokenmill verify" ({error})')
    _survey_checkpoints(store, [e for e in listing if e.path.startswith("checkpoints/")], sweep)
    _survey_unfinished(store, sweep)
    return sweep


def is_description(path: str) -> bool:
    """Say whether an object makes a snapshot or a plan exist."""
    return path.endswith("/plan.json") or ("/snapshots/" in path and path.endswith(".json"))


def _listing(store: Store, *, needs_clock: bool) -> tuple[list[Stored], float]:
    """List the whole root, and tell the store's own time (seconds since 1970), read off a small object written for it.

    Ages are compared with the times the store gave its objects, so a machine whose clock is wrong never takes a fresh
    file for an old one.
    """
    name = f"{PROBE}{uuid.uuid4().hex}"
    try:
        store.put(name, b"")
    except StorageError:
        if needs_clock:
            raise
        return store.files(), time.time()
    try:
        listing = store.files()
    finally:
        with contextlib.suppress(StorageError):
            store.delete(name)
    now = next((entry.modified_s for entry in listing if entry.path == name), None)
    return [entry for entry in listing if entry.path != name], now if now is not None else time.time()


def _opened(store: Store, inside: Mapping[str, list[Stored]], sweep: Sweep) -> dict[str, StageDir]:
    """Open the stage folders; what is left of one whose removal was killed before its last object goes as a whole."""
    folders = {}
    for path, entries in sorted(inside.items()):
        names = {entry.path[len(path) + 1 :] for entry in entries}
        if not any(name == "config.json" or name.startswith(("commits/", "snapshots/")) for name in names):
            old = [entry for entry in entries if is_old(entry, sweep)]
            sweep.loose += [entry.path for entry in old]
            sweep.doomed += [Doomed(entry.path, entry.size, "orphan") for entry in old]
            continue
        try:
            folders[path] = stage_dir_at(store, path)
        except ManifestError as error:
            sweep.notes.append(f'{path}: left alone; run "tokenmill verify" ({error})')
    return folders


def _named(
    folders: Mapping[str, StageDir], keeps: Mapping[str, Keep], inside: Mapping[str, list[Stored]], sweep: Sweep
) -> tuple[Mapping[str, Keep], dict[str, set[str]]]:
    """Return what to keep and the snapshots that are named; all of them where nobody knows what one of them names."""
    finished = {
        path: {
            _stem(entry.path): entry
            for entry in inside[path]
            if "/snapshots/" in entry.path and is_description(entry.path)
        }
        for path in folders
    }
    try:
        return keeps, _followed(folders, keeps, finished, sweep)
    except ManifestError as error:
        sweep.notes.append(
            f"all snapshots and their units are kept: one does not say any more what it came from ({error})"
        )
        whole = {path: Keep(beside=keep.beside) for path, keep in keeps.items()}
        return whole, {path: set(names) for path, names in finished.items()}


def _followed(
    folders: Mapping[str, StageDir],
    keeps: Mapping[str, Keep],
    finished: Mapping[str, Mapping[str, Stored]],
    sweep: Sweep,
) -> dict[str, set[str]]:
    """Return the snapshots that are named, by folder: those to keep, those that are young, and their parents.

    What `duplicates` kept before is followed one step: that far a damaged unit can be computed again.
    """
    known: dict[str, tuple[str, str, dict[str, str]]] = {}
    wanted: list[tuple[str, bool]] = []
    for path, folder in folders.items():
        keep = keeps[path].snapshots
        for name, entry in finished[path].items():
            digest, parents = snapshot_parents(folder, name)
            known[digest] = (path, name, parents)
            if keep is None or name in keep or not is_old(entry, sweep):
                wanted.append((digest, True))
    named: dict[str, set[str]] = {}
    done: set[tuple[str, bool]] = set()
    while wanted:
        digest, follow = one = wanted.pop()
        if one in done:
            continue
        done.add(one)
        path, name, parents = known[digest]
        named.setdefault(path, set()).add(name)
        if follow:
            wanted += [(parent, label != "previous") for label, parent in parents.items() if parent in known]
    return named


def _survey_folder(folder: StageDir, keep: Keep, named: set[str], entries: list[Stored], sweep: Sweep) -> None:
    inside = {entry.path[len(folder.path) + 1 :]: entry for entry in entries}
    records = {key: e for name, e in inside.items() if name.startswith("commits/") and (key := record_of(name))}
    kept = set(records) if keep.snapshots is None else _kept_records(folder, keep, named, records, sweep)
    files = files_of(folder, records)
    used = {name for key, names in files.items() if key in kept for name in names}
    known = {name for names in files.values() for name in names}
    one = FolderSweep(folder=folder, seen=set(records), records=set(records) - kept)
    for name, entry in inside.items():
        kind = _kind(folder, name, known, keep)
        if kind is None or name in used or not is_old(entry, sweep):
            continue
        if name.startswith("snapshots/"):
            if _stem(name) in named:
                continue
            one.snapshots.add(_stem(name))
            kind = keep.kind if f"snapshots/{_stem(name)}.json" in inside else "orphan"
        elif name.startswith("commits/"):
            if record_of(name) not in one.records:
                continue
        else:
            one.files.append(entry.path)
        sweep.doomed.append(Doomed(entry.path, entry.size, kind))
    if not keep.whole and not named and not kept and all(is_old(entry, sweep) for entry in entries):
        one.rest = sorted(e.path for name, e in inside.items() if _kind(folder, name, known, keep) is None)
        sweep.doomed += [Doomed(entry.path, entry.size, keep.kind) for entry in entries if entry.path in one.rest]
    sweep.folders.append(one)


def _kind(folder: StageDir, name: str, known: set[str], keep: Keep) -> str | None:
    """Say what an object of a folder would count as if nobody names it; None: it goes with its whole folder only."""
    if name == "config.json" or name.startswith((*ASIDE, *keep.beside)):
        return None
    if folder.config.stage == "plan" and name in _PLAN_FILES:
        return None
    return keep.kind if name in known or name.startswith(("commits/", "snapshots/")) else "orphan"


def _kept_records(
    folder: StageDir, keep: Keep, named: set[str], records: Mapping[Record, Stored], sweep: Sweep
) -> set[Record]:
    """Return the records that kept snapshots name, those asked for, and those that are young."""
    kept = set(keep.records) | {key for key, entry in records.items() if not is_old(entry, sweep)}
    for name in named:
        units = read_table(folder.store, folder.at(f"snapshots/{name}.parquet"), ["unit", "attempt"])
        kept.update((str(unit), int(attempt)) for unit, attempt in units.iter_rows())
    missing = sorted(kept - set(records))
    if missing:
        raise ManifestError(f"record {missing[0][0]}.{missing[0][1]} is missing, and a snapshot names it")
    return kept


def files_of(folder: StageDir, records: Iterable[Record]) -> dict[Record, tuple[str, ...]]:
    """Return the names of the files that some records name; 0.3 KB a record, a fifteenth of what a record takes."""
    wanted = list(records)

    def names(key: Record) -> tuple[str, ...]:
        return tuple(entry.name for entry in folder.read_commit(*key).files)

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(wanted, pool.map(names, wanted), strict=True))


def _survey_unfinished(store: Store, sweep: Sweep) -> None:
    for left in store.unfinished():
        if left.started_s is None or left.started_s <= sweep.before_s:
            sweep.unfinished.append(left)
            sweep.doomed.append(Doomed(left.path, left.bytes or 0, "leftover" if store.is_local else "upload"))


def _survey_checkpoints(store: Store, listing: Iterable[Stored], sweep: Sweep) -> None:
    """Add what killed training left: files in checkpoints' folders that no checkpoint's record names."""
    folders: dict[str, list[Stored]] = {}
    for entry in listing:
        parent = entry.path.rpartition("/")[0]
        if parent.rsplit("/", 1)[-1].startswith("step-"):
            folders.setdefault(parent, []).append(entry)
    for folder, entries in sorted(folders.items()):
        record = f"{folder}/{CHECKPOINT_RECORD}"
        try:
            there = any(entry.path == record for entry in entries)
            named = {f"{folder}/{e.name}" for e in read_checkpoint_files(store, record)} if there else set()
        except ManifestError as error:
            sweep.notes.append(f'{folder}: left alone; run "tokenmill verify" ({error})')
            continue
        for entry in entries:
            if entry.path not in named | {record} and is_old(entry, sweep):
                sweep.loose.append(entry.path)
                sweep.doomed.append(Doomed(entry.path, entry.size, "orphan"))


def is_old(entry: Stored, sweep: Sweep) -> bool:
    """Say whether an object is older than the sweep's limit, by the store's clock."""
    return entry.modified_s is not None and entry.modified_s <= sweep.before_s


def record_of(name: str) -> Record | None:
    """Return the unit and attempt of a record's path."""
    unit, _, attempt = _stem(name).rpartition(".")
    return (unit, int(attempt)) if unit and attempt.isdigit() else None


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rpartition(".")[0]


def _nearest(path: str, folders: Mapping[str, object]) -> str | None:
    parent = path.rpartition("/")[0]
    while parent and parent not in folders:
        parent = parent.rpartition("/")[0]
    return parent or None
