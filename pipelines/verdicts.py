"""The decision about a modality's copies, as stored: which rows of which slice are dropped, why, and for whom.

One unit a decision: its table has one row a slice (with the digest that names the slice's unit of `duplicates`), the
verdicts lie in further tables of some 500,000 rows each, so a worker that writes one slice reads one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import canonical_json
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef
from tokenmill.manifests.stagedir import StageDir, read_table, table_bytes

_ROWS_A_TABLE = 500_000
_PARTS = {
    "part": pl.UInt32,
    "source": pl.String,
    "slice": pl.String,
    "compared": pl.UInt32,
    "dropped": pl.UInt32,
    "verdicts": pl.String,
    "table": pl.UInt32,
}


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What was decided, in memory.

    Attributes:
        slices: source and name of every slice.
        starts: i64[slices + 1], the first compared sample of each slice.
        rows: u32[samples], the place of each compared sample in its slice.
        dropped: `sample` (of `rows`), `reason`, `of`: the dropped samples, in order.
    """

    slices: list[tuple[str, str]]
    starts: NDArray[np.int64]
    rows: NDArray[np.uint32]
    dropped: pl.DataFrame

    def tables(self) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Yield (rows about slices, their verdicts) for some slices at a time."""
        borders = np.searchsorted(self.dropped["sample"].to_numpy(), self.starts)
        first = table = 0
        for part in range(len(self.slices)):
            last = part + 1 == len(self.slices)
            if last or borders[part + 2] - borders[first] > _ROWS_A_TABLE:
                yield self._table(first, part + 1, borders, table)
                first, table = part + 1, table + 1

    def _table(self, first: int, end: int, borders: NDArray[np.int64], table: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        about, verdicts = [], []
        for part in range(first, end):
            compared = self.rows[self.starts[part] : self.starts[part + 1]]
            found = self.dropped.slice(int(borders[part]), int(borders[part + 1] - borders[part]))
            rows = self.rows[found["sample"].to_numpy()]
            lines = found.select(
                pl.lit(part, pl.UInt32).alias("part"), pl.Series("row", rows, pl.UInt32), "reason", "of"
            )
            digest = _digest(compared, lines)
            about.append((part, *self.slices[part], len(compared), lines.height, digest, table))
            verdicts.append(lines)
        return pl.DataFrame(about, schema=_PARTS, orient="row"), pl.concat(verdicts)


def _digest(compared: NDArray[np.uint32], lines: pl.DataFrame) -> str:
    """Return what a slice's verdicts are known by: which rows were compared, which are dropped, why and for whom."""
    state = hashlib.sha256(compared.astype("<u4").tobytes())
    state.update(lines["row"].to_numpy().astype("<u4").tobytes())
    state.update(canonical_json([lines["reason"].to_list(), lines["of"].to_list()]).encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def publish_verdicts(folder: StageDir, unit: str, inputs: tuple[InputRef, ...], verdicts: Verdicts) -> Commit:
    """Publish the tables of a decision, then its record; its counts are of slices."""
    fault_point("commit:before-data")
    files: list[FileEntry] = []
    about = [pl.DataFrame(schema=_PARTS)]
    for number, (parts, lines) in enumerate(verdicts.tables()):
        data = table_bytes(lines, folder.config.schema)
        files.append(folder.publish_bytes(unit, f".verdicts-{number:05d}.parquet", data, f"verdicts-{number:05d}"))
        about.append(parts)
        fault_point("commit:between-files")
    table = pl.concat(about)
    files.insert(0, folder.publish_bytes(unit, ".parquet", table_bytes(table, folder.config.schema), "rows"))
    slices = table.height
    commit = Commit(
        stage=folder.config.stage,
        source=folder.source,
        config=folder.config.digest,
        unit=unit,
        inputs=inputs,
        counts=Counts(rows_in=slices, kept=slices, out=slices),
        files=tuple(files),
        totals={"compared": len(verdicts.rows), "dropped": verdicts.dropped.height},
    )
    return folder.publish_commit(commit)


@dataclass(kw_only=True)
class Decision:
    """A published decision, read a table at a time."""

    folder: StageDir
    commit: Commit
    _table: tuple[int, pl.DataFrame] | None = field(default=None, repr=False)

    def parts(self) -> pl.DataFrame:
        """Return one row a slice, in order."""
        return self.folder.read_rows(self.commit)

    def of_part(self, part: int, table: int) -> pl.DataFrame:
        """Return `row`, `reason` and `of` of a slice's dropped samples, whose verdicts lie in a table."""
        held = self._table  # threads share a decision
        if held is None or held[0] != table:
            entry = self.commit.file(f"verdicts-{table:05d}")
            if entry is None:
                raise ManifestError(f"record {self.commit.unit}: names no verdicts {table}")
            held = table, read_table(self.folder.store, self.folder.at(entry.name), sha256=entry.sha256)
            self._table = held
        return held[1].filter(pl.col("part") == part).drop("part")
