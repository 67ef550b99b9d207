"""Rollups: many commit records in one file, so that a resume reads a few large files and not a million small ones.

A rollup is a cache and never the truth: a row counts only while the listing still shows its record, a file only while
it has the digest its name carries, and whatever else is wanted is read from the records. What 1,000,000 requests would
bring stands in some 40 files of 7 MB. They are outside every digest and can be removed at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO

import polars as pl

from tokenmill.errors import ManifestError, SchemaError, StorageError
from tokenmill.manifests.findings import Fault
from tokenmill.manifests.identity import sha256_hex, short
from tokenmill.manifests.ledger import LEDGER_COLUMNS, Ledger
from tokenmill.manifests.records import check_schema
from tokenmill.manifests.stagedir import StageDir

log = logging.getLogger(__name__)
ROLLUP_SCHEMA = 1
ROLLUP_COLUMNS = {**LEDGER_COLUMNS, "record": pl.Binary}
_KEY = ["unit", "attempt"]
_LISTINGS = 3  # how often to list again when a merge removes files under our hands
_FILES_AT_ONCE = 2
_RECORDS_AT_ONCE = 4096
_THREADS = 16


@dataclass(frozen=True, slots=True)
class RollupSize:
    """How many records a rollup holds, and how many bytes those have."""

    records: int
    bytes: int


@dataclass(kw_only=True)
class FoundRollups:
    """What reading a ledger learned about the folder's rollups.

    Attributes:
        sizes: of the sound ones, by path.
        bad: damaged ones, and those with rows whose record is gone or that contradict each other.
        loose: places of the ledger's records that stand in no sound rollup.
    """

    sizes: dict[str, RollupSize] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    loose: list[int] = field(default_factory=list)


def read_ledger(folder: StageDir, units: pl.Series | None = None) -> tuple[Ledger, FoundRollups]:
    """Read the newest record of every unit (of `units`, if given): one listing, the rollups, then only newer records.

    Raises:
        ManifestError: a record is none, or does not belong to the folder.
    """
    listing = folder.record_table()
    newest = listing.group_by("unit").agg(pl.col("attempt").max())
    if units is not None:
        newest = newest.join(units.unique().to_frame("unit"), on="unit", how="semi")
    return _gather(folder, newest, listing)


def read_named(folder: StageDir, wanted: pl.DataFrame) -> Ledger:
    """Read the records that a snapshot names; `wanted` has columns unit, attempt, record_sha256."""
    return _gather(folder, wanted, folder.record_table())[0]


def _gather(folder: StageDir, wanted: pl.DataFrame, listing: pl.DataFrame) -> tuple[Ledger, FoundRollups]:
    ledger, found = Ledger(folder), FoundRollups()
    missing, contradict = wanted, False
    for path, frame in _rollups(folder, found):
        listed = frame.join(listing, on=_KEY, how="semi", maintain_order="left")
        is_stale = listed.height < frame.height and _any_gone(folder, frame, listing)
        rows = listed.join(missing, on=missing.columns, how="semi", maintain_order="left")
        if is_stale:
            found.bad.append(path)
            found.loose += range(len(ledger), len(ledger) + rows.height)
        else:
            found.sizes[path] = RollupSize(frame.height, int(frame["record"].bin.size().sum()))
        contradict = contradict or _contradicts(ledger, listed)
        ledger.extend(rows)
        missing = missing.join(rows, on=missing.columns, how="anti")
    if contradict:
        log.warning("%s: rollups contradict each other; reading the records", folder.at("rollups"))
        ledger, missing = Ledger(folder), wanted
        found = FoundRollups(bad=[*found.bad, *found.sizes])
    found.loose += range(len(ledger), len(ledger) + missing.height)
    _read_singly(folder, missing, ledger)
    return ledger, found


def _any_gone(folder: StageDir, frame: pl.DataFrame, listing: pl.DataFrame) -> bool:
    """Say whether records of a rollup are gone; those that came after the listing are not."""
    unlisted = frame.select(_KEY).join(listing, on=_KEY, how="anti")
    return not unlisted.join(folder.record_table(), on=_KEY, how="anti").is_empty()


def _contradicts(ledger: Ledger, rows: pl.DataFrame) -> bool:
    """Say whether a rollup tells of a record otherwise than one before it."""
    taken = ledger.table.select(*_KEY, pl.col("record_sha256").alias("before"))
    both = rows.select(*_KEY, "record_sha256").join(taken, on=_KEY)
    return not both.filter(pl.col("record_sha256") != pl.col("before")).is_empty()


def _read_singly(folder: StageDir, missing: pl.DataFrame, ledger: Ledger) -> None:
    """Read the records that no rollup has, many at a time."""
    if missing.is_empty():
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for some in missing.select(_KEY).sort(_KEY).iter_slices(_RECORDS_AT_ONCE):
            for commit in pool.map(lambda key: folder.read_commit(*key), some.iter_rows()):
                ledger.add(commit)


def _rollups(folder: StageDir, found: FoundRollups) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield every sound rollup; one that a merge removed meanwhile stands in another, so the folder is listed again."""
    seen: set[str] = set()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in range(_LISTINGS):
            paths = [path for path in rollup_paths(folder) if path not in seen]
            seen.update(paths)
            is_gone = False
            for start in range(0, len(paths), _FILES_AT_ONCE):
                some = paths[start : start + _FILES_AT_ONCE]
                for path, data in zip(some, pool.map(lambda path: _data(folder, path), some), strict=True):
                    is_gone |= data is None
                    frame = None if data is None else _sound(folder, path, data, found)
                    if frame is not None:
                        yield path, frame
                        del frame
                        release_memory()
            if not is_gone:
                return


def release_memory() -> None:
    """Give back what Arrow keeps for later: a third of a gigabyte after some files."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _data(folder: StageDir, path: str) -> bytes | None:
    try:
        return folder.store.read_bytes(path)
    except StorageError:
        return None


def _sound(folder: StageDir, path: str, data: bytes, found: FoundRollups) -> pl.DataFrame | None:
    try:
        return parse_rollup(folder, path, data)
    except SchemaError as error:
        log.warning("%s; reading the records", error)  # a newer tokenmill works here too: leave its file alone
    except ManifestError as error:
        log.warning("%s; reading the records", error)
        found.bad.append(path)
    return None


def rollup_paths(folder: StageDir) -> list[str]:
    """List a folder's rollups."""
    return [path for path in folder.store.names(folder.at("rollups")) if path.endswith(".parquet")]


def forget_rollups(folder: StageDir) -> None:
    """Remove a folder's rollups, as whoever removes records has to do first.

    Otherwise a unit that is done again could have another record under the name that a rollup knows.
    """
    for path in rollup_paths(folder):
        folder.store.delete(path)


def rollup_bytes(folder: StageDir, rows: pl.DataFrame) -> bytes:
    """Return rows of a ledger as a rollup's file."""
    import pyarrow.parquet as pq

    table = rows.select(ROLLUP_COLUMNS.keys()).to_arrow(compat_level=pl.CompatLevel.oldest())
    table = table.replace_schema_metadata(
        {"tokenmill.schema": str(ROLLUP_SCHEMA), "tokenmill.config": folder.config.digest}
    )
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def rollup_path(folder: StageDir, data: bytes) -> str:
    """Return where a rollup with these bytes stands: its name carries its digest."""
    return folder.at(f"rollups/{short(sha256_hex(data))}.parquet")


def parse_rollup(folder: StageDir, path: str, data: bytes) -> pl.DataFrame:
    """Read a rollup's file.

    Raises:
        ManifestError: it is damaged, or was written for another folder.
        SchemaError: a newer tokenmill wrote it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rollup_path(folder, data) != path:
        raise ManifestError(f"{path}: a damaged rollup")
    try:
        file = pq.ParquetFile(BytesIO(data))
        metadata: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}
        check_schema(int(metadata.get(b"tokenmill.schema", b"0")), ROLLUP_SCHEMA, path)
        if metadata.get(b"tokenmill.config", b"").decode() != folder.config.digest:
            raise ManifestError(f"{path}: a rollup of another folder")
        return pl.DataFrame(file.read(), schema=ROLLUP_COLUMNS)
    except (pa.ArrowException, OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise ManifestError(f"{path}: not a rollup ({' '.join(str(error).split())})") from error


def check_rollups(folder: StageDir, digests: Mapping[tuple[str, int], str]) -> list[Fault]:
    """Compare every rollup with the folder's records, given as (unit, attempt) → sha256; rows of others are no fault.

    A row without a record is harmless, and usual after somebody removed one: the next run writes the rollup anew.
    """
    faults = []
    for path in rollup_paths(folder):
        try:
            rows = parse_rollup(folder, path, folder.store.read_bytes(path))
        except (ManifestError, StorageError) as error:
            faults.append(Fault(path, str(error).removeprefix(f"{path}: "), _REMOVE))
            continue
        for unit, attempt, digest, record in rows.select(*_KEY, "record_sha256", "record").iter_rows():
            if digests.get((unit, attempt), digest) != digest or sha256_hex(record) != digest:
                faults.append(Fault(path, f"differs from the record {unit}.{attempt}", _REMOVE))
                break
    return faults


_REMOVE = "remove it; the next run writes it anew"
