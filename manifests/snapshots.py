"""Snapshots: an ordered list of units and attempts, which is what readers, plans and trainers refer to.

A folder may hold units of many states of the raw data; a snapshot says which of them are meant. Its digest covers the
digests of the records, and through them every byte, so two runs with equal snapshot digests wrote equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.records import NO_COUNTS, Commit, Counts, check_schema
from tokenmill.manifests.stagedir import StageDir, read_table, table_bytes

SNAPSHOT_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The units that make up a stage's result for one state of its inputs, in the order of the inputs.

    `parents` are digests of the snapshots it was first made from, by stage and source. They are not part of its own
    digest: a new threshold that keeps the same samples must not give new tokens, a new plan and a new training run.
    """

    folder: StageDir
    commits: tuple[Commit, ...]
    parents: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        units = [(commit.unit, commit.attempt, sha256_hex(commit.to_bytes())) for commit in self.commits]
        return digest_of({"config": self.folder.config.digest, "source": self.folder.source, "units": units})

    @cached_property
    def counts(self) -> Counts:
        return sum((commit.counts for commit in self.commits), NO_COUNTS)

    @cached_property
    def totals(self) -> dict[str, int]:
        names = sorted({name for commit in self.commits for name in commit.totals})
        return {name: sum(commit.totals.get(name, 0) for commit in self.commits) for name in names}

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
    return pl.DataFrame(
        {
            "unit": [commit.unit for commit in commits],
            "attempt": [commit.attempt for commit in commits],
            "record_sha256": [sha256_hex(commit.to_bytes()) for commit in commits],
            "kept": [commit.counts.kept for commit in commits],
            "out": [commit.counts.out for commit in commits],
            "bytes": [sum(entry.bytes for entry in commit.files) for commit in commits],
        },
        schema={
            "unit": pl.String,
            "attempt": pl.Int32,
            "record_sha256": pl.String,
            "kept": pl.Int64,
            "out": pl.Int64,
            "bytes": pl.Int64,
        },
    )


def read_snapshot(folder: StageDir, digest: str) -> Snapshot:
    """Read a snapshot by its digest (full or the 16 digits); raises ManifestError if records differ from it."""
    name = folder.at(f"snapshots/{short(digest)}")
    value = read_description(folder, short(digest))
    units = read_table(folder.store, f"{name}.parquet")
    commits = []
    for row in units.iter_rows(named=True):
        commit = folder.read_commit(row["unit"], row["attempt"])
        if sha256_hex(commit.to_bytes()) != row["record_sha256"]:
            raise ManifestError(f"{folder.at(commit.record_name)}: not the record that snapshot {short(digest)} names")
        commits.append(commit)
    snapshot = Snapshot(folder=folder, commits=tuple(commits), parents=value["parents"])
    if snapshot.digest != value["digest"]:
        raise ManifestError(f"{name}.json: its digest is not that of its units")
    return snapshot


def read_description(folder: StageDir, name: str) -> dict[str, Any]:
    """Return a snapshot's JSON by its 16 digits, without reading its records."""
    path = folder.at(f"snapshots/{name}.json")
    try:
        value: dict[str, Any] = json.loads(folder.store.read_bytes(path))
        check_schema(value["schema"], SNAPSHOT_SCHEMA, path)
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: not a snapshot ({error})") from error
    return value


def snapshot_names(folder: StageDir) -> list[str]:
    """Return the 16 digits of every snapshot in a folder, sorted."""
    found = folder.store.files(folder.at("snapshots"))
    return sorted(e.path.rsplit("/", 1)[-1].removesuffix(".json") for e in found if e.path.endswith(".json"))


def merge_counts(commits: Sequence[Commit]) -> Counts:
    """Return the sum of some records' counts."""
    return sum((commit.counts for commit in commits), NO_COUNTS)
