"""Verify what stands beside the stages: takedown lists, exported models, generated pictures, evaluations.

Each carries its own digests (an evaluation only its schema), so nothing but the root is needed. The listing alone shows
a missing file; the digests are compared in a deep verification, takedown lists always: they are small and must hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Fault, Findings
from tokenmill.manifests.records import FileEntry
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import FOLDER, read_list
from tokenmill.manifests.verify_files import digest_fault

_RESTORE = "restore it, or take the samples down again"
_DESCRIPTIONS = {"export/tokenmill.json": "train again to export it anew", "generated.json": "remove it and draw again"}
_EVALUATE = "remove it and evaluate again"


def is_result(path: str) -> bool:
    """Say whether a path is a description that `examine_result` understands."""
    return (
        path.endswith(tuple(f"/{name}" for name in _DESCRIPTIONS))
        or (path.startswith(f"{FOLDER}/") and path.endswith(".json"))
        or (path.startswith("evaluation/") and path.endswith(".json"))
    )


def examine_result(store: Store, path: str, sizes: Mapping[str, int], findings: Findings, *, deep: bool) -> None:
    """Verify one description and the files it speaks of; `sizes` lists the whole store."""
    findings.records += 1
    if path.startswith(f"{FOLDER}/"):
        findings.files += 1
        findings.add(_list_faults(store, path, sizes))
        return
    hint = next((hint for name, hint in _DESCRIPTIONS.items() if path.endswith(f"/{name}")), _EVALUATE)
    try:
        value = json.loads(store.read_bytes(path))
        entries = list(_entries(value))
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        findings.faults.append(Fault(path, f"not a description ({error})", hint))
        return
    folder = path.rpartition("/")[0]
    for entry in entries:
        name = f"{folder}/{entry.name}"
        findings.files += 1
        findings.bytes += sizes.get(name, 0)
        if name not in sizes:
            findings.faults.append(Fault(name, "is missing", hint))
        elif deep and (fault := digest_fault(store, name, entry, hint)):
            findings.faults.append(fault)


def _list_faults(store: Store, path: str, sizes: Mapping[str, int]) -> Iterator[Fault]:
    table = f"{path.removesuffix('.json')}.parquet"
    if table not in sizes:
        yield Fault(table, "is missing", _RESTORE)
        return
    try:
        read_list(store, path.rsplit("/", 1)[-1].removesuffix(".json"))
    except (ManifestError, StorageError) as error:
        where, _, what = str(error).partition(": ")
        yield Fault(where, what, _RESTORE)


def _entries(value: Mapping[str, Any]) -> Iterator[FileEntry]:
    """Yield the files a description lists: by name (an export), or as rows (pictures)."""
    for name, sha256 in (value.get("files") or {}).items():
        yield FileEntry(name=name, role="data", bytes=0, sha256=sha256)
    for row in value.get("pictures") or ():
        yield FileEntry(name=row["file"], role="data", bytes=0, sha256=row["sha256"])
