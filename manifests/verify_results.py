"""Verify what stands beside the stages: takedown lists, exported models, drawn pictures, benchmarks, evaluations.

Each carries its own digests (an evaluation only its schema), so nothing but its folder is needed. The listing alone
shows a missing or a cut file; the digests are compared in a deep verification, takedown lists always: they are small
and must hold. Tables of drawn ids carry eight digits of theirs in their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Fault, Findings
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.records import FileEntry
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import FOLDER, read_list
from tokenmill.manifests.verify_files import digest_fault

_RESTORE = "restore it, or take the samples down again"
_BENCHMARK = "run.json"
_DESCRIPTIONS = {
    "export/tokenmill.json": "train again to export it anew",
    "generated.json": "remove it and draw again",
    _BENCHMARK: "remove it and evaluate again",
}
_EVALUATE = "remove it and evaluate again"


def is_result(path: str, sizes: Mapping[str, int]) -> bool:
    """Say whether a path is a description that `examine_result` understands; `sizes` lists the whole store."""
    if f"/{path}".endswith(f"/{_BENCHMARK}"):
        return f"{path.removesuffix(_BENCHMARK)}asked.jsonl" in sizes
    return (
        f"/{path}".endswith(tuple(f"/{name}" for name in _DESCRIPTIONS))
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
    hint = next((hint for name, hint in _DESCRIPTIONS.items() if f"/{path}".endswith(f"/{name}")), _EVALUATE)
    folder = path[: path.rfind("/") + 1]
    try:
        value = json.loads(store.read_bytes(path))
        entries = list(_entries(value))
        tables = _tables(value, folder, sizes)
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        findings.faults.append(Fault(path, f"not a description ({error})", hint))
        return
    for name in tables:
        findings.files += 1
        findings.bytes += sizes.get(name, 0)
        if name not in sizes:
            findings.faults.append(Fault(name, "is missing", hint))
        elif deep or "benchmark" in value:
            findings.add(_table_faults(store, name, hint, entries if "benchmark" in value else None))
    for entry in {entry.name: entry for entry in entries}.values():
        findings.add(_entry_faults(store, f"{folder}{entry.name}", entry, sizes, hint, deep=deep))
        findings.files += 1
        findings.bytes += sizes.get(f"{folder}{entry.name}", 0)


def _entry_faults(
    store: Store, name: str, entry: FileEntry, sizes: Mapping[str, int], hint: str, *, deep: bool
) -> Iterator[Fault]:
    """Compare one file; of a digest without its size only that."""
    if name not in sizes:
        yield Fault(name, "is missing", hint)
    elif entry.bytes and sizes[name] != entry.bytes:
        yield Fault(name, f"has {sizes[name]} bytes, its record says {entry.bytes}", hint)
    elif deep and (fault := digest_fault(store, name, entry, hint)):
        yield fault


def _tables(value: Mapping[str, Any], folder: str, sizes: Mapping[str, int]) -> list[str]:
    """Name the tables of drawn ids: those that a description lists, all that lie beside a benchmark's."""
    if "benchmark" in value:
        begin = f"{folder}tokens-"
        return [name for name in sizes if name.startswith(begin) and name.endswith(".parquet")]
    listed = value.get("tokens") or []
    return [f"{folder}{name}" for name in ([listed] if isinstance(listed, str) else listed)]


def _table_faults(store: Store, name: str, hint: str, entries: list[FileEntry] | None) -> Iterator[Fault]:
    """Read a table of drawn ids; `entries` gets the files of which it tells the bytes (a benchmark's)."""
    try:
        table = open_named_table(store, name)
        if entries is not None:
            for file, size, sha256 in table.frame(["file", "bytes", "sha256"]).iter_rows():
                entries.append(FileEntry(name=file, role="data", bytes=size, sha256=sha256))
    except (ManifestError, StorageError) as error:
        yield Fault(name, str(error).partition(": ")[2].partition(";")[0], hint)


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
        yield FileEntry(name=row["file"], role="data", bytes=row.get("bytes", 0), sha256=row["sha256"])
