"""Verify: is what lies on disk still what the records say? Faults name the file, what is wrong and what to do.

Shallow compares settings, records, snapshots, sizes and the row counts in the tables' footers: one listing, and two
small reads a unit; of plans it reads all windows, which are small beside what they name. Deep reads every byte once,
archives as a stream, so memory does not grow with their size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Fault, Findings
from tokenmill.manifests.storage import Store, Stored
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD, examine_checkpoint
from tokenmill.manifests.verify_plan_lengths import PlanChecks
from tokenmill.manifests.verify_results import examine_result, is_result
from tokenmill.manifests.verify_stage import examine_stage

_MARKS = ("commits", "snapshots")


def verify(store: Store, path: str, *, deep: bool) -> list[Fault]:
    """Return every fault at and below a path (`""` is the store's root); empty means all is well.

    Raises:
        ManifestError: nothing that could be verified lies there.
    """
    return examine(store, path, deep=deep).faults


def examine(store: Store, path: str, *, deep: bool, checks: PlanChecks | None = None) -> Findings:
    """Verify every stage folder, plan, checkpoint and result at and below a path; also reports notes and figures.

    `checks` is what other rooms know of plans; without it their templates and lengths are not compared.
    """
    listing = store.files(path)
    sizes = {entry.path: entry.size for entry in listing}
    stages = sorted(stage_folders(store, listing))
    checkpoints = sorted(_parent(name) for name in sizes if name.rsplit("/", 1)[-1] == CHECKPOINT_RECORD)
    results = sorted(name for name in sizes if is_result(name, sizes))
    if not stages and not checkpoints and not results:
        place = f"{store.url}/{path}".rstrip("/")
        raise ManifestError(f"{place}: holds no stage folder, plan, checkpoint or drawings that could be verified")
    findings = Findings()
    inside = _by_folder(sizes, {*stages, *checkpoints})
    for folder in stages:
        examine_stage(store, folder, inside[folder], findings, deep=deep, checks=checks)
    for folder in checkpoints:
        examine_checkpoint(store, folder, inside[folder], findings, deep=deep)
    for name in results:
        examine_result(store, name, sizes, findings, deep=deep)
    return findings


def stage_folders(store: Store, listing: Iterable[Stored]) -> set[str]:
    """Find the folders that hold records or snapshots, and those that only have their description yet."""
    found: set[str] = set()
    described: list[str] = []
    for entry in listing:
        parent, _, name = entry.path.rpartition("/")
        if parent.rsplit("/", 1)[-1] in _MARKS:
            found.add(_parent(parent))
        elif name == "config.json":
            described.append(entry.path)
    return found | {_parent(name) for name in described if _parent(name) not in found and _describes_stage(store, name)}


def _describes_stage(store: Store, name: str) -> bool:
    """Tell a stage's `config.json` from the one of an exported model."""
    try:
        value = json.loads(store.read_bytes(name))
    except (ValueError, StorageError):
        return False
    return isinstance(value, dict) and {"stage", "config"} <= value.keys()


def _by_folder(sizes: Mapping[str, int], folders: set[str]) -> dict[str, dict[str, int]]:
    """Sort files (name → size) under the nearest of some folders, with names relative to it."""
    inside: dict[str, dict[str, int]] = {folder: {} for folder in folders}
    for path, size in sizes.items():
        parent = _parent(path)
        while parent and parent not in folders:
            parent = _parent(parent)
        if parent in folders:
            inside[parent][path[len(parent) + 1 :] if parent else path] = size
    return inside


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
