"""Verify that a plan and the token snapshots it names belong together, and that what it reads is there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Fault, shortened
from tokenmill.manifests.plans import SHARD_COLUMNS, Plan
from tokenmill.manifests.records import FileEntry
from tokenmill.manifests.snapshots import Snapshot, read_snapshot
from tokenmill.manifests.stagedir import stage_dir_at
from tokenmill.manifests.verify_files import digest_fault

_RUN = "run the recipe again, or plan again"
_THREADS = 8
_COLUMNS = {**SHARD_COLUMNS, "num_rows": pl.Int64}


def known_shards(plan: Plan) -> tuple[pl.DataFrame, list[Fault]]:
    """Return `shards.parquet` with each index's `num_rows` by its record (null: unknown), and what doesn't fit."""
    faults: list[Fault] = []
    tables = [pl.DataFrame(schema=_COLUMNS)]
    for source, told in plan.description["sources"].items():
        try:
            tables.append(_snapshot_table(plan, source, told))
        except (ManifestError, StorageError) as error:
            path, _, what = str(error).partition(": ")
            faults.append(Fault(path, f"{what}, and plan {plan.folder.path} was made from it", _RUN))
    records, where = pl.concat(tables), plan.folder.at("shards.parquet")
    shards = plan.shards.with_columns(pl.col("source", "shard").cast(pl.String))
    joined = shards.join(records, on="shard", how="left", suffix="_told", maintain_order="left")
    if not faults:
        faults = shortened([Fault(where, what, "plan again") for what in _differences(joined, records)], where)
    return joined.select(*SHARD_COLUMNS, "num_rows"), faults


def missing_faults(plan: Plan) -> list[Fault]:
    """Name every archive and index that a plan reads and that is not there, from a listing of their folders."""
    wanted = {str(path) for column in ("shard", "index") for path in plan.shards[column]}
    parents = {path.rpartition("/")[0] for path in wanted}
    there = {path for parent in sorted(parents) for path in plan.folder.store.names(parent)}
    what = f"is missing, and plan {plan.folder.path} reads it"
    return [Fault(path, what, _RUN) for path in sorted(wanted - there)]


def digest_faults(plan: Plan) -> list[Fault]:
    """Read every archive and index and compare it with the digest that the plan was made from."""
    rows = plan.shards.select("shard", "shard_sha256").rows() + plan.shards.select("index", "index_sha256").rows()
    with ThreadPoolExecutor(_THREADS) as pool:
        return [fault for fault in pool.map(partial(_digest_fault, plan), rows) if fault]


def _digest_fault(plan: Plan, row: tuple[Any, ...]) -> Fault | None:
    path, sha256 = row
    try:
        entry = FileEntry(name=path, role="data", bytes=0, sha256=sha256)
        return digest_fault(plan.folder.store, path, entry, "restore it, or make it anew and plan again")
    except StorageError as error:
        return Fault(path, f"cannot be read: {error}", "look at the store and verify again")


def _snapshot_table(plan: Plan, source: str, told: dict[str, Any]) -> pl.DataFrame:
    """Return what the records of a source's snapshot say, as `shards.parquet` would."""
    snapshot = read_snapshot(stage_dir_at(plan.folder.store, told["folder"]), told["snapshot"])
    if snapshot.digest != told["snapshot"]:
        raise ManifestError(f"{snapshot.name}.json: not the snapshot {told['snapshot'][:16]}")
    return pl.DataFrame(list(_rows(source, snapshot)), schema=_COLUMNS, orient="row")


def _rows(source: str, snapshot: Snapshot) -> Iterator[tuple[Any, ...]]:
    for commit in snapshot.commits:
        at, counts = snapshot.folder.at, commit.counts
        num_rows = counts.out + sum(counts.dropped.values()) + sum(counts.failed.values())
        yield (source, at(commit.data.name), at(commit.rows.name), commit.data.sha256, commit.rows.sha256, num_rows)


def _differences(joined: pl.DataFrame, records: pl.DataFrame) -> Iterator[str]:
    """Yield where `shards.parquet`, joined with the snapshots' records, says something else than they do."""
    for shard, source in joined.filter(pl.col("source_told").is_null()).select("shard", "source").rows():
        yield f"names {shard}, which is not in the snapshot of {source}"
    for name in ("source", "index", "shard_sha256", "index_sha256"):
        differing = joined.filter(pl.col(name).cast(pl.String) != pl.col(f"{name}_told"))
        for shard, said, told in differing.select("shard", name, f"{name}_told").rows():
            yield f"{name} of {shard} is {said}, its record says {told}"
    for shard in records.join(joined, on="shard", how="anti")["shard"]:
        yield f"does not name {shard}, which is in the snapshot"
    for shard in joined.filter(pl.col("shard").is_duplicated())["shard"].unique():
        yield f"names {shard} twice"
