"""Verify one stage folder: its settings, every record, every file that a record names, every snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import RERUN, Fault, Findings
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.plan_pieces import continued_faults
from tokenmill.manifests.plan_root import in_root
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.records import Commit, unit_name
from tokenmill.manifests.rollups import check_rollups
from tokenmill.manifests.snapshots import Snapshot, read_description, units_table
from tokenmill.manifests.stagedir import ASIDE, StageDir, read_table, stage_dir_at
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_files import unit_faults
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.manifests.verify_plan_lengths import PlanChecks
from tokenmill.manifests.verify_plan_sources import digest_faults, missing_faults

REDESCRIBE = "remove it and run the stage again, which writes it anew"
_REPLAN = "remove plan.json and plan again"
_THREADS = 8
_PLAN_FILES = {"plan.json", "windows.parquet", "shards.parquet"}
_PLAN_ASIDE = {"mix.json", "excluded.parquet", "seen.parquet"}  # of shares, of lists, of what was seen before
Records = dict[tuple[str, int], tuple[Commit, str]]  # (unit, attempt) → the record and its file's sha256


def examine_stage(
    store: Store,
    path: str,
    sizes: Mapping[str, int],
    findings: Findings,
    *,
    deep: bool,
    checks: PlanChecks | None = None,
) -> None:
    """Verify one folder; `sizes` lists its files, relative to it, `checks` is for plans."""
    findings.folders += 1
    try:
        folder = stage_dir_at(store, path)
    except ManifestError as error:
        name = f"{path}/config.json" if path else "config.json"
        findings.faults.append(Fault(name, str(error).removeprefix(f"{name}: "), REDESCRIBE))
        return
    records = _records(folder, sizes, findings)
    with ThreadPoolExecutor(_THREADS) as pool:
        commits = [commit for commit, _ in records.values()]
        for faults in pool.map(partial(unit_faults, folder, sizes=sizes, deep=deep), commits):
            findings.add(faults)
    named = {entry.name: entry.bytes for commit, _ in records.values() for entry in commit.files}
    findings.records += len(records)
    findings.files += len(named)
    findings.bytes += sum(named.values())
    if deep and any(name.startswith("rollups/") for name in sizes):
        findings.add(check_rollups(folder, {key: digest for key, (_, digest) in records.items()}))
    _snapshots(folder, sizes, records, findings)
    _plan(folder, sizes, findings, checks, deep=deep)
    _orphans(folder, sizes, set(named), findings)


def _records(folder: StageDir, sizes: Mapping[str, int], findings: Findings) -> Records:
    names = sorted(name for name in sizes if name.startswith("commits/"))
    records: Records = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, found in zip(names, pool.map(partial(_record, folder), names), strict=True):
            if isinstance(found, Fault):
                findings.faults.append(found)
                continue
            commit, _ = records[found[0].unit, found[0].attempt] = found
            if name != commit.record_name:
                findings.faults.append(Fault(folder.at(name), f"is the record {commit.record_name}, renamed", RERUN))
    findings.add(_source_faults(folder, records))
    for commit, _ in records.values():
        findings.add(_lineage_faults(folder, commit, records))
    return records


def _record(folder: StageDir, name: str) -> tuple[Commit, str] | Fault:
    path = folder.at(name)
    try:
        data = folder.store.read_bytes(path)
        commit = Commit.from_bytes(data, path)
    except (ManifestError, StorageError) as error:
        return Fault(path, str(error).removeprefix(f"{path}: "), RERUN)
    if (commit.stage, commit.config) != (folder.config.stage, folder.config.digest):
        return Fault(path, "was written for another folder or under other settings", RERUN)
    if commit.unit != unit_name(commit.inputs):
        return Fault(path, "its unit is not named after its inputs", RERUN)
    return commit, sha256_hex(data)


def _source_faults(folder: StageDir, records: Records) -> list[Fault]:
    """The source is in no digest: where all records agree on another one, the folder's description is wrong."""
    sources = {commit.source for commit, _ in records.values()}
    if len(sources) == 1 and folder.source not in sources:
        what = f"names the source {folder.source}, its records {sources.pop()}"
        return [Fault(folder.at("config.json"), what, REDESCRIBE)]
    return [
        Fault(folder.at(commit.record_name), f"is of the source {commit.source}", RERUN)
        for commit, _ in records.values()
        if commit.source != folder.source
    ]


def _lineage_faults(folder: StageDir, commit: Commit, records: Records) -> list[Fault]:
    """A later attempt names the record it replaces, which may be gone: housekeeping removes what is superseded."""
    before = records.get((commit.unit, commit.attempt - 1))
    if before is None or before[1] == commit.predecessor:
        return []
    name = folder.at(f"commits/{commit.unit}.{commit.attempt - 1}.json")
    what = f"is not the one that attempt {commit.attempt} replaced"
    return [Fault(name, what, "restore it, or remove the later attempts")]


def _snapshots(folder: StageDir, sizes: Mapping[str, int], records: Records, findings: Findings) -> None:
    stems = sorted({name.rpartition(".")[0] for name in sizes if name.startswith("snapshots/")})
    for stem in stems:
        if f"{stem}.json" not in sizes:
            findings.note(folder.at(f"{stem}.parquet"), "a snapshot that was never finished")
            continue
        try:
            findings.add(_snapshot_faults(folder, stem, records))
        except (ManifestError, StorageError) as error:
            path = folder.at(f"{stem}.parquet" if "parquet" in str(error) else f"{stem}.json")
            findings.faults.append(Fault(path, str(error).removeprefix(f"{path}: "), RERUN))


def _snapshot_faults(folder: StageDir, stem: str, records: Records) -> list[Fault]:
    name = stem.removeprefix("snapshots/")
    description = read_description(folder, name)
    units = read_table(folder.store, folder.at(f"{stem}.parquet"), units_table(()).columns)
    faults = []
    commits = []
    for unit, attempt, digest in units.select("unit", "attempt", "record_sha256").iter_rows():
        found = records.get((unit, attempt))
        if found is None or found[1] != digest:
            what = "is missing or unreadable" if found is None else "is not the record"
            path = folder.at(f"commits/{unit}.{attempt}.json")
            faults.append(Fault(path, f"{what}, and snapshot {name} names it", "run the stage again"))
        else:
            commits.append(found[0])
    if faults:
        return faults
    snapshot = Snapshot(folder=folder, commits=tuple(commits), parents=description.get("parents", {}))
    if not units.equals(units_table(snapshot.commits)):
        faults.append(Fault(folder.at(f"{stem}.parquet"), "its figures are not those of its records", RERUN))
    if description != json.loads(snapshot.description()) or snapshot.digest[:16] != name:
        faults.append(Fault(folder.at(f"{stem}.json"), "does not describe its own records", RERUN))
    return faults


def _plan(
    folder: StageDir, sizes: Mapping[str, int], findings: Findings, checks: PlanChecks | None, *, deep: bool
) -> None:
    if folder.config.stage != "plan":
        return
    if "plan.json" not in sizes:
        findings.note(folder.at("plan.json"), "is not there yet: this plan was never finished")
        return
    missing = sorted(_PLAN_FILES - sizes.keys())
    if missing:
        findings.add(Fault(folder.at(name), "is missing", _REPLAN) for name in missing)
        return
    root = in_root(folder.store, folder.path)
    if root is None:
        what = "does not lie at plans/<phase>/<plan> of a root: what it reads was not looked for"
        findings.note(folder.at("plan.json"), what)
        return
    for fault in _plan_faults(*root, checks, deep=deep, alone=not folder.path):
        findings.faults.append(replace(fault, path=_path_here(folder, root[1], fault.path)))
    if deep:
        _continued(folder, *root, findings)


def _plan_faults(store: Store, path: str, checks: PlanChecks | None, *, deep: bool, alone: bool) -> list[Fault]:
    """Compare a plan with itself and with what it reads; in a whole root the archives' own folders are verified."""
    try:
        plan = open_plan(store, path)
        faults = missing_faults(plan) + plan_faults(plan, checks, deep=deep)
        return faults + (digest_faults(plan) if deep and alone else [])
    except (ManifestError, StorageError) as error:
        where, _, what = str(error).partition(": ")
        return [Fault(where, what, _REPLAN)]


def _continued(folder: StageDir, store: Store, path: str, findings: Findings) -> None:
    """Compare a plan with those it goes back to, as far as they are still there."""
    try:
        for fault in continued_faults(open_plan(store, path)):
            findings.add([Fault(folder.at("plan.json"), fault.partition(": ")[2], _REPLAN)])
    except (ManifestError, StorageError) as error:
        findings.note(folder.at("plan.json"), f"was not compared with the plan it continues ({error})")


def _path_here(folder: StageDir, place: str, path: str) -> str:
    """Return a path below a root as the store that is verified has it; what lies outside of it stays as it is."""
    return folder.at(path.removeprefix(f"{place}/")) if path.startswith(f"{place}/") else path


def _orphans(folder: StageDir, sizes: Mapping[str, int], named: set[str], findings: Findings) -> None:
    plan = _PLAN_FILES | _PLAN_ASIDE if folder.config.stage == "plan" else set()
    for name in sorted(sizes.keys() - named - plan - {"config.json"}):
        if not name.startswith(("commits/", "snapshots/", *ASIDE)):
            findings.note(folder.at(name), "no record names it")
