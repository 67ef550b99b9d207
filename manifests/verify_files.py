"""Verify the files of one unit against its commit record: sizes and footers, or (deep) every byte."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import IO, Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import RERUN_RECORD, Fault, shortened
from tokenmill.manifests.records import Commit, FileEntry
from tokenmill.manifests.stagedir import StageDir, parse_table
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_archive import archive_faults

_CHUNK_BYTES = 2**20


class HashingReader(io.RawIOBase):
    """Passes a stream on and hashes what goes by; `finish` reads the rest and returns the digest."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> str:
        while self.read(_CHUNK_BYTES):
            pass
        return self._hash.hexdigest()


def unit_faults(folder: StageDir, commit: Commit, sizes: Mapping[str, int], *, deep: bool) -> list[Fault]:
    """Compare a unit's files with its record; `sizes` is what the folder's listing says."""
    faults: list[Fault] = []
    sound: list[FileEntry] = []
    for entry in commit.files:
        fault = size_fault(folder.at(entry.name), entry, _size(folder, entry, sizes))
        if fault is None:
            sound.append(entry)
        else:
            faults.append(fault)
    for entry in sound:
        try:
            found = _deep_faults(folder, commit, entry) if deep else _shallow_faults(folder, commit, entry)
        except StorageError as error:
            found = [Fault(folder.at(entry.name), f"cannot be read: {error}", "look at the store and verify again")]
        faults += shortened(found, folder.at(entry.name))
    return faults


def _size(folder: StageDir, entry: FileEntry, sizes: Mapping[str, int]) -> int | None:
    if not entry.is_outside:
        return sizes.get(entry.name)
    path = folder.at(entry.name)
    try:
        return folder.store.size(path) if folder.store.exists(path) else None
    except StorageError:
        return None


def size_fault(path: str, entry: FileEntry, size: int | None, hint: str = RERUN_RECORD) -> Fault | None:
    """Say whether a file is missing or has another size than its record says."""
    if size is None:
        return Fault(path, "is missing", hint)
    if size != entry.bytes:
        return Fault(path, f"has {size:,} bytes, its record says {entry.bytes:,}", hint)
    return None


def digest_fault(store: Store, path: str, entry: FileEntry, hint: str = RERUN_RECORD) -> Fault | None:
    """Read a file as a stream and say whether its digest is the recorded one."""
    with store.open(path) as stream:
        differs = HashingReader(stream).finish() != entry.sha256
    return Fault(path, "sha256 differs from its record", hint) if differs else None


def _shallow_faults(folder: StageDir, commit: Commit, entry: FileEntry) -> list[Fault]:
    if not entry.name.endswith(".parquet"):
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder.at(entry.name)
    try:
        with folder.store.open(path) as stream:
            footer = pq.read_metadata(stream)
    except (pa.ArrowException, OSError, ValueError) as error:
        return [Fault(path, f"not a readable table ({_one_line(error)})", RERUN_RECORD)]
    return _table_faults(path, folder, commit, entry, footer.num_rows, footer.metadata or {})


def _deep_faults(folder: StageDir, commit: Commit, entry: FileEntry) -> list[Fault]:
    path = folder.at(entry.name)
    if entry.name.endswith(".tar") and not entry.is_outside:
        return _archive_faults(folder, commit, entry)
    if not entry.name.endswith(".parquet"):
        fault = digest_fault(folder.store, path, entry)
        return [fault] if fault else []
    data = folder.store.read_bytes(path)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        return [Fault(path, "sha256 differs from its record", RERUN_RECORD)]
    import pyarrow.parquet as pq

    try:
        frame = parse_table(data)
    except ManifestError as error:
        return [Fault(path, str(error), RERUN_RECORD)]
    footer = pq.read_metadata(io.BytesIO(data))
    faults = _table_faults(path, folder, commit, entry, footer.num_rows, footer.metadata or {})
    return faults + (_reason_faults(path, commit, frame) if entry.role == "rows" else [])


def _table_faults(
    path: str, folder: StageDir, commit: Commit, entry: FileEntry, num_rows: int, metadata: Mapping[bytes, bytes]
) -> list[Fault]:
    faults = []
    schema = metadata.get(b"tokenmill.schema", b"none").decode("ascii", "replace")
    if schema != str(folder.config.schema):
        faults.append(Fault(path, f"has schema {schema}, its folder says {folder.config.schema}", RERUN_RECORD))
    expected = _expected_rows(commit, entry.role)
    if expected is not None and num_rows != expected:
        faults.append(Fault(path, f"has {num_rows:,} rows, its record counts {expected:,}", RERUN_RECORD))
    return faults


def _expected_rows(commit: Commit, role: str) -> int | None:
    """Return how many rows a table has: what the kept rows became, and one for each dropped or failed one."""
    counts = commit.counts
    if commit.stage == "plan":
        return {"rows": commit.totals.get("pieces"), "packs": counts.out}.get(role)
    return counts.out + sum(counts.dropped.values()) + sum(counts.failed.values()) if role == "rows" else None


def _reason_faults(path: str, commit: Commit, frame: pl.DataFrame) -> list[Fault]:
    """Count the reasons in the table again."""
    faults = []
    for column, counted in (("fail_reason", commit.counts.failed), ("drop_reason", commit.counts.dropped)):
        if column not in frame.columns or commit.stage == "plan":
            continue
        found = {str(reason): int(number) for reason, number in frame[column].drop_nulls().value_counts().rows()}
        if found != dict(counted):
            faults.append(Fault(path, f"{column} counts {found}, its record {dict(counted)}", RERUN_RECORD))
    return faults


def _archive_faults(folder: StageDir, commit: Commit, entry: FileEntry) -> list[Fault]:
    """Walk an archive beside its index, hashing on the way."""
    path = folder.at(entry.name)
    rows = _index(folder, commit)
    with folder.store.open(path) as stream:
        reader: Any = HashingReader(stream)
        faults = archive_faults(path, reader, rows, _sizes(folder))
        if reader.finish() != entry.sha256:
            faults.insert(0, Fault(path, "sha256 differs from its record", RERUN_RECORD))
    return faults


def _sizes(folder: StageDir) -> dict[str, int]:
    """Return how many codes and text ids a folder of tokens says there are; nothing of one that does not."""
    return {name: size for name, size in folder.config.about.items() if isinstance(size, int)}


def _index(folder: StageDir, commit: Commit) -> pl.DataFrame | None:
    """Return the unit's table, or None where it has its own fault already."""
    try:
        return folder.read_rows(commit)
    except (ManifestError, StorageError):
        return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
