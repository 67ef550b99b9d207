"""The ledger of a stage's folder: a million commit records as columns, parsed only where somebody looks at one.

As objects 1,000,000 records take some 5 GB. What a resume, a snapshot and `status` ask of all of them are comparisons
and sums, so those stand in columns, and the records' own bytes in compressed blocks: 0.6 GB. The price is 40 µs for
each record that is looked at, because it is parsed again each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.packed import PackedRecords
from tokenmill.manifests.records import Commit, Counts, unit_digest
from tokenmill.manifests.stagedir import StageDir

_NUMBERS = pl.List(pl.Struct({"name": pl.String, "number": pl.Int64}))
LEDGER_COLUMNS: dict[str, Any] = {
    "unit": pl.String,
    "attempt": pl.Int32,
    "record_sha256": pl.String,
    "unit_digest": pl.String,
    "rows_in": pl.Int64,
    "kept": pl.Int64,
    "out": pl.Int64,
    "bytes": pl.Int64,  # of all its files
    "dropped": _NUMBERS,  # by reason
    "failed": _NUMBERS,
    "totals": _NUMBERS,
}
_SUMMED = 65_536
_GATHERED = 1024  # commits that wait to become columns together


class Ledger:
    """Records of one folder, in the order they were added; a record's place is its row in `table`."""

    def __init__(self, folder: StageDir) -> None:
        self.folder = folder
        self._packed = PackedRecords()
        self._tables: list[pl.DataFrame] = [pl.DataFrame(schema=LEDGER_COLUMNS)]
        self._waiting: list[Commit] = []

    def __len__(self) -> int:
        return len(self._packed) + len(self._waiting)

    def add(self, commit: Commit) -> int:
        """Add one record; returns its place."""
        self._waiting.append(commit)
        place = len(self) - 1
        if len(self._waiting) >= _GATHERED:
            self._settle()
        return place

    def extend(self, rows: pl.DataFrame) -> None:
        """Add rows that have the ledger's columns and `record`, the bytes; see `tabulate`."""
        self._settle()
        if rows.height:
            self._packed.extend(rows["record"].to_list())
            self._tables.append(rows.select(LEDGER_COLUMNS.keys()))

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.extend(tabulate(waiting))

    @property
    def table(self) -> pl.DataFrame:
        """The columns of all records, one row a place."""
        self._settle()
        if len(self._tables) > 1:
            self._tables = [pl.concat(self._tables)]
        return self._tables[0]

    def newest(self) -> pl.DataFrame:
        """Return, one row a unit, the place of its highest attempt, its unit digest, and whether samples failed."""
        found = self.table.lazy().with_row_index("place").select(
            "unit", "attempt", "place", "unit_digest", pl.col("failed").list.len().gt(0).alias("has_failed")
        ).collect()  # fmt: skip
        if found["unit"].n_unique() == found.height:
            return found
        return found.sort("attempt", maintain_order=True).unique("unit", keep="last", maintain_order=True)

    def in_order_of_name(self) -> Commits:
        """Return the newest record of every unit, by name."""
        return Commits(self, self.newest().sort("unit")["place"].to_numpy())

    def rows(self, places: Sequence[int]) -> pl.DataFrame:
        """Return some records as rows that another ledger or a rollup can take: with their bytes."""
        records = pl.Series("record", [self.record(place) for place in places], dtype=pl.Binary)
        return self.table[list(places)].with_columns(records)

    def record(self, place: int) -> bytes:
        """Return a record's bytes."""
        self._settle()
        return self._packed[place]

    def commit(self, place: int) -> Commit:
        """Parse a record; raises ManifestError when its bytes are not what the columns say."""
        unit, attempt, digest = self.table.select("unit", "attempt", "record_sha256").row(place)
        return self._parsed(place, unit, attempt, digest)

    def commits(self, places: NDArray[np.uint32]) -> Iterator[Commit]:
        """Parse some records, one at a time."""
        columns = self.table.select("unit", "attempt", "record_sha256")
        for start in range(0, len(places), _GATHERED):
            some = places[start : start + _GATHERED]
            for place, row in zip(some.tolist(), columns[some].iter_rows(), strict=True):
                yield self._parsed(place, *row)

    def _parsed(self, place: int, unit: str, attempt: int, digest: str) -> Commit:
        path = self.folder.at(f"commits/{unit}.{attempt}.json")
        data = self._packed[place]
        if sha256_hex(data) != digest:
            raise ManifestError(f"{path}: a rollup holds other bytes than it says; remove {self.folder.at('rollups')}")
        commit = Commit.from_bytes(data, path)
        self.folder.check_commit(commit, unit, path)
        return commit


class Commits(Sequence[Commit]):
    """Some records of a ledger, in an order of their own; each is parsed when it is looked at."""

    def __init__(self, ledger: Ledger, places: NDArray[np.uint32]) -> None:
        self._ledger, self._places = ledger, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Commit: ...
    @overload
    def __getitem__(self, index: slice) -> Commits: ...
    def __getitem__(self, index: int | slice) -> Commit | Commits:
        if isinstance(index, slice):
            return Commits(self._ledger, self._places[index])
        return self._ledger.commit(int(self._places[index]))

    def __iter__(self) -> Iterator[Commit]:
        return self._ledger.commits(self._places)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} commits of {self._ledger.folder.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (list(self),))

    def columns(self, *names: str) -> pl.DataFrame:
        """Return some of the ledger's columns (all, if none is named), one row a commit."""
        table = self._ledger.table
        return table.select(names or table.columns)[self._places].rechunk()

    def parts(self, *names: str) -> Iterator[pl.DataFrame]:
        """Yield some columns a part at a time, in any order: whoever only adds up copies no whole column.

        Gathering the lists of 250,000 commits took 220 MB, this takes 10.
        """
        chosen = np.zeros(len(self._ledger), bool)
        chosen[self._places] = True
        if np.count_nonzero(chosen) != len(self._places):  # one stands there twice
            yield self.columns(*names)
            return
        table = self._ledger.table.select(names)
        for start in range(0, table.height, _SUMMED):
            yield table.slice(start, _SUMMED).filter(pl.Series(chosen[start : start + _SUMMED]))


def columns_of(commits: Sequence[Commit], *names: str) -> pl.DataFrame:
    """Return ledger columns of any sequence of commits, parsing nothing where they are columns already."""
    if isinstance(commits, Commits):
        return commits.columns(*names)
    table = tabulate(commits)
    return table.select(names or LEDGER_COLUMNS.keys())


def tabulate(commits: Iterable[Commit]) -> pl.DataFrame:
    """Return commits as rows of a ledger: their columns, and `record`, the bytes they have on disk."""
    found = list(commits)
    records = [commit.to_bytes() for commit in found]
    plain: dict[str, Any] = {
        "unit": [commit.unit for commit in found],
        "attempt": [commit.attempt for commit in found],
        "record_sha256": [sha256_hex(record) for record in records],
        "unit_digest": [unit_digest(commit.inputs) for commit in found],
        "rows_in": [commit.counts.rows_in for commit in found],
        "kept": [commit.counts.kept for commit in found],
        "out": [commit.counts.out for commit in found],
        "bytes": [sum(entry.bytes for entry in commit.files) for commit in found],
        "dropped": _numbers([commit.counts.dropped for commit in found]),
        "failed": _numbers([commit.counts.failed for commit in found]),
        "totals": _numbers([commit.totals for commit in found]),
        "record": records,
    }
    try:
        return pl.DataFrame(plain, schema={**LEDGER_COLUMNS, "record": pl.Binary})
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise ManifestError(f"records hold figures that are no columns ({error})") from error


def _numbers(values: Sequence[Mapping[str, int]]) -> pl.Series:
    """Return mappings as lists of (name, number), built flat: a Series of dictionaries costs ten times as much."""
    import pyarrow as pa

    names = pa.array([name for value in values for name in value], pa.large_string())
    flat = [number for value in values for number in value.values()]
    if not all(isinstance(number, int) for number in flat):
        raise ManifestError("a record holds figures that are not whole numbers; remove it and run the stage again")
    numbers = pa.array(flat, pa.int64())
    offsets = pa.array(np.cumsum([0, *(len(value) for value in values)]), pa.int64())
    pairs = pa.StructArray.from_arrays([names, numbers], ["name", "number"])
    found = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, pairs))
    assert isinstance(found, pl.Series)
    return found.cast(_NUMBERS)


def sum_of_counts(commits: Sequence[Commit]) -> Counts:
    """Add up the counts of some commits."""
    numbers = sum_of_columns(commits, "rows_in", "kept", "out")
    return Counts(
        rows_in=numbers["rows_in"],
        kept=numbers["kept"],
        out=numbers["out"],
        dropped=sum_of_numbers(commits, "dropped"),
        failed=sum_of_numbers(commits, "failed"),
    )


def sum_of_columns(commits: Sequence[Commit], *names: str) -> dict[str, int]:
    """Add up columns of plain numbers."""
    total = dict.fromkeys(names, 0)
    for part in _parts(commits, *names):
        for name in names:
            total[name] += int(part[name].sum())
    return total


def sum_of_numbers(commits: Sequence[Commit], column: str) -> dict[str, int]:
    """Add up a column of (name, number) lists by name; names in alphabetical order."""
    total: Counter[str] = Counter()
    for part in _parts(commits, column):
        flat = part[column].explode().drop_nulls()
        if flat.len():
            found = flat.struct.unnest().group_by("name").agg(pl.col("number").sum())
            total.update(dict(found.iter_rows()))
    return dict(sorted(total.items()))


def _parts(commits: Sequence[Commit], *names: str) -> Iterator[pl.DataFrame]:
    return commits.parts(*names) if isinstance(commits, Commits) else iter([columns_of(commits, *names)])


def bytes_of(commits: Sequence[Commit]) -> int:
    """Add up the bytes of all files of some commits."""
    return sum_of_columns(commits, "bytes")["bytes"]
