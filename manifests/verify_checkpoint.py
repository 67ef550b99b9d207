"""Verify a training checkpoint: the files its own record lists, by size and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Fault, Findings
from tokenmill.manifests.records import FileEntry, check_schema
from tokenmill.manifests.storage import Store
from tokenmill.manifests.tensor_heads import tensor_shapes
from tokenmill.manifests.verify_files import digest_fault, size_fault

CHECKPOINT_RECORD = "checkpoint.json"
EXPORT_RECORD = "tokenmill.json"  # beside an exported model
CHECKPOINT_SCHEMA = 2
_HINT = "remove the checkpoint's folder to go on from the one before it"


def examine_checkpoint(store: Store, folder: str, sizes: Mapping[str, int], findings: Findings, *, deep: bool) -> None:
    """Verify one checkpoint's folder."""
    findings.folders += 1
    name = f"{folder}/{CHECKPOINT_RECORD}" if folder else CHECKPOINT_RECORD
    try:
        entries = read_checkpoint_files(store, name)
    except ManifestError as error:
        findings.faults.append(Fault(name, str(error), _HINT))
        return
    findings.records += 1
    for entry in entries:
        path = entry.name if entry.is_outside or not folder else f"{folder}/{entry.name}"
        found = size_fault(path, entry, _size(store, path) if entry.is_outside else sizes.get(entry.name), _HINT)
        if found is None and deep:
            found = digest_fault(store, path, entry, _HINT)
        elif found is None:
            found = _head_fault(store, path)
        findings.add([found] if found else [])
        findings.files += 1
        findings.bytes += entry.bytes
    for extra in sorted(sizes.keys() - {entry.name for entry in entries} - {CHECKPOINT_RECORD}):
        findings.note(f"{folder}/{extra}" if folder else extra, "no record names it")


def _head_fault(store: Store, path: str) -> Fault | None:
    """Look whether a file of tensors begins as one: what a digest would tell of, for two short reads."""
    if not path.endswith(".safetensors"):
        return None
    try:
        tensor_shapes(store, path)
    except (ManifestError, StorageError) as error:
        return Fault(path, str(error), _HINT)
    return None


def _size(store: Store, path: str) -> int | None:
    return store.size(path) if store.exists(path) else None


def read_checkpoint_files(store: Store, name: str) -> list[FileEntry]:
    """Return the files that a checkpoint's record lists; raises ManifestError when it cannot be read."""
    try:
        value = json.loads(store.read_bytes(name))
        check_schema(value["schema"], CHECKPOINT_SCHEMA, name)
        return [FileEntry(**entry) for entry in value["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"not a checkpoint record ({error})") from error
