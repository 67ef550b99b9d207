"""Snapshots: an ordered list of units and attempts, which is what readers, plans and trainers refer to.

A folder may hold units of many states of the raw data; a snapshot says which of them are meant. Its digest covers the
digests of the records, and through them every byte, so two runs with equal snapshot digests wrote equal files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import canonical_json, digest_of, short
from tokenmill.manifests.ledger import Commits, columns_of, sum_of_counts, sum_of_numbers
from tokenmill.manifests.records import Commit, Counts, check_schema
from tokenmill.manifests.rollups import read_named
from tokenmill.manifests.stagedir import StageDir, read_table, table_bytes

SNAPSHOT_SCHEMA = 1
_UNITS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The units that make up a stage's result for one state of its inputs, in the order of the inputs.

    `parents` are digests of the snapshots it was first made from, by stage and source. They are not part of its own
    digest: a new threshold that keeps the same samples must not give new tokens, a new plan and a new training run.
    """

    folder: StageDir
    commits: Sequence[Commit]  # a tuple, or the columns of a ledger
    parents: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """`digest_of` config, source and units = (unit, attempt, sha256 of the record), taken chunk by chunk."""
        where = canonical_json({"config": self.folder.config.digest, "source": self.folder.source})
        state = hashlib.sha256(f'{where[:-1]},"units":['.encode("utf-8", "surrogatepass"))
        units = columns_of(self.commits, "unit", "attempt", "record_sha256")
        for number, chunk in enumerate(units.iter_slices(_UNITS_AT_ONCE)):
            state.update(b"," if number else b"")
            state.update(canonical_json(chunk.rows())[1:-1].encode("utf-8", "surrogatepass"))
        state.update(b"]}")
        return state.hexdigest()

    @cached_property
    def counts(self) -> Counts:
        return sum_of_counts(self.commits)

    @cached_property
    def totals(self) -> dict[str, int]:
        return sum_of_numbers(self.commits, "totals")

    @property
    def name(self) -> str:
        return self.folder.at(f"snapshots/{short(self.digest)}")

    def publish(self) -> None:
        """Write the table of units, then the description, which is what makes the snapshot exist."""
        store = self.folder.store
        if store.exists(f"{self.name}.json"):
            return
        store.put(f"{self.name}.parquet", table_bytes(units_table(self.commits), SNAPSHOT_SCHEMA))
        fault_point("snapshot:before-description")
        store.put(f"{self.name}.json", self.description())

    def description(self) -> bytes:
        """Return the JSON that stands beside the table of units."""
        value = {
            "schema": SNAPSHOT_SCHEMA,
            "digest": self.digest,
            "stage": self.folder.config.stage,
            "source": self.folder.source,
            "config": self.folder.config.digest,
            "fingerprints": dict(self.folder.config.fingerprints),
            "parents": dict(self.parents),
            "num_units": len(self.commits),
            "counts": self.counts.to_json(),
            "totals": self.totals,
        }
        value["checksum"] = digest_of(value)  # `digest` does not cover the parents
        return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def units_table(commits: Sequence[Commit]) -> pl.DataFrame:
    """Return a snapshot's table: which records it names, and their main figures."""
    return columns_of(commits, "unit", "attempt", "record_sha256", "kept", "out", "bytes")


def read_snapshot(folder: StageDir, digest: str) -> Snapshot:
    """Read a snapshot by its digest (full or the 16 digits); raises ManifestError if records differ from it."""
    name = folder.at(f"snapshots/{short(digest)}")
    value = read_description(folder, short(digest))
    units = read_table(folder.store, f"{name}.parquet").select("unit", "attempt", "record_sha256")
    ledger = read_named(folder, units)
    key = ["unit", "attempt", "record_sha256"]
    known = ledger.table.lazy().with_row_index("place").select(*key, "place").unique(key, keep="last").collect()
    places = units.join(known, on=key, how="left", maintain_order="left")["place"]
    if places.null_count():
        unit, attempt, _ = units.row(int(places.is_null().arg_max() or 0))
        path = folder.at(f"commits/{unit}.{attempt}.json")
        raise ManifestError(f"{path}: not the record that snapshot {short(digest)} names")
    snapshot = Snapshot(folder=folder, commits=Commits(ledger, places.to_numpy()), parents=value["parents"])
    if snapshot.digest != value["digest"]:
        raise ManifestError(f"{name}.json: its digest is not that of its units")
    return snapshot


def read_description(folder: StageDir, name: str) -> dict[str, Any]:
    """Return a snapshot's JSON by its 16 digits, without reading its records; raises ManifestError if it is damaged."""
    path = folder.at(f"snapshots/{name}.json")
    try:
        value: dict[str, Any] = json.loads(folder.store.read_bytes(path))
        check_schema(value["schema"], SNAPSHOT_SCHEMA, path)
        checksum = digest_of({key: one for key, one in value.items() if key != "checksum"})
        if value["checksum"] != checksum or short(value["digest"]) != name:
            raise ValueError("its checksum or its name differs; remove it and run the stage again")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path}: not a snapshot ({error})") from error
    return value


def snapshot_names(folder: StageDir) -> list[str]:
    """Return the 16 digits of every snapshot in a folder, sorted."""
    found = folder.store.files(folder.at("snapshots"))
    return sorted(e.path.rsplit("/", 1)[-1].removesuffix(".json") for e in found if e.path.endswith(".json"))


def merge_counts(commits: Sequence[Commit]) -> Counts:
    """Return the sum of some records' counts."""
    return sum_of_counts(commits)
