"""A list of pictures and clips to train a tokenizer on: which they are, and where their bytes lie.

One Parquet file that `pipelines` writes from a selection and the trainer reads, so that the two meet in a file. Its
digest covers what the samples are (source, key, digest of the content, frames, part) and not where they lie: moved data
are the same list. All rows lie in memory: some 200 bytes each, so ten million take 2 GB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import check_schema
from tokenmill.manifests.storage import Store

SCHEMA = 1
TABLE, DESCRIPTION = "samples.parquet", "samples.json"
COLUMNS: Mapping[str, Any] = {
    "source": pl.String,
    "key": pl.String,
    "sha256": pl.String,
    "held_out": pl.Boolean,
    "packed": pl.Boolean,  # under the root of the run; else in the source's own store
    "path": pl.String,
    "offset": pl.Int64,  # of a picture
    "length": pl.Int64,
    "extension": pl.String,
    "start_frame": pl.Int64,  # of a clip, as all below
    "end_frame": pl.Int64,
    "start_seconds": pl.Float64,
    "end_seconds": pl.Float64,
    "fps": pl.Float64,
    "width_px": pl.Int32,
    "height_px": pl.Int32,
}
_IDENTITY = ("source", "key", "sha256", "held_out", "start_frame", "end_frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleListDescription:
    """What a list is: its digest, the number of samples by source, and the selections it was made from."""

    digest: str
    samples: Mapping[str, int]
    held_out: Mapping[str, int]
    selections: Mapping[str, str]

    def differences(self, other: SampleListDescription) -> list[str]:
        """Say what differs in another list, by source."""
        if self.digest == other.digest:
            return []
        found = [
            f"{source} {self.samples.get(source, 0):,} → {other.samples.get(source, 0):,} samples"
            for source in sorted({*self.samples, *other.samples})
            if self.samples.get(source) != other.samples.get(source)
        ]
        return found or ["as many samples, but others"]


def describe(rows: pl.DataFrame, selections: Mapping[str, str]) -> SampleListDescription:
    """Take a list's digest and count it."""
    return SampleListDescription(
        digest=rows_digest(rows.select(_IDENTITY)),
        samples=_counted(rows),
        held_out=_counted(rows.filter("held_out")),
        selections=dict(sorted(selections.items())),
    )


def write(store: Store, folder: str, rows: pl.DataFrame, description: SampleListDescription) -> None:
    """Publish a list in a folder, its description last."""
    table = BytesIO()
    rows.select(list(COLUMNS)).write_parquet(table)
    store.put(f"{folder}/{TABLE}", table.getvalue())
    text = json.dumps({"schema": SCHEMA, **asdict(description)}, indent=1) + "\n"
    store.put(f"{folder}/{DESCRIPTION}", text.encode())


def read_list_description(store: Store, folder: str) -> SampleListDescription | None:
    """Read what a folder's list is, or None where it has none; raises ManifestError if it is damaged."""
    name = f"{folder}/{DESCRIPTION}"
    if not store.exists(name):
        return None
    try:
        value = json.loads(store.read_bytes(name))
        check_schema(value.pop("schema"), SCHEMA, name)
        return SampleListDescription(**value)
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{store.url}/{name}: not a list's description ({error})") from error


def read_list(store: Store, folder: str) -> tuple[pl.DataFrame, SampleListDescription]:
    """Read a folder's list; raises ManifestError where it is missing or is not what its description says."""
    described = read_list_description(store, folder)
    name = f"{store.url}/{folder}/{TABLE}"
    if described is None:
        raise ManifestError(f"{name}: no list of samples there; run tokenmill train-tokenizer again")
    try:
        rows = pl.read_parquet(BytesIO(store.read_bytes(f"{folder}/{TABLE}")), columns=list(COLUMNS))
    except pl.exceptions.PolarsError as error:
        raise ManifestError(f"{name}: not a readable list ({' '.join(str(error).split())})") from error
    if rows_digest(rows.select(_IDENTITY)) != described.digest:
        raise ManifestError(f"{name}: differs from the digest in {DESCRIPTION}; run tokenmill train-tokenizer again")
    return rows, described


def _counted(rows: pl.DataFrame) -> dict[str, int]:
    counted = rows.group_by("source").len().sort("source")
    return dict(counted.iter_rows())
