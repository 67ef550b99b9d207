"""A unit's table in memory as it lies on disk: its digest is compared, its columns are parsed when they are asked for.

Tables of one slice repeat its keys. Comparing their packed bytes takes 10 µs where parsing 10,000 keys takes 700, and
what a rule does not read is not parsed at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir


class PackedTable:
    """A Parquet table; `columns` are the names of what it holds."""

    def __init__(self, path: str, data: bytes) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self._data = path, data
        with self._explained():
            self._file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)
            self.num_rows: int = self._file.metadata.num_rows

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Parse some columns; raises ManifestError naming the file when it is damaged or lacks one."""
        missing = sorted(set(columns) - set(self.columns))
        if missing:
            raise ManifestError(f"{self._path}: a table without column {missing[0]!r}")
        with self._explained():
            # Threads of Arrow's own cost more than they bring on tables this small.
            found = self._file.read(list(columns), use_threads=False)
            return pl.DataFrame({name: found[name] for name in columns})

    def packed(self, column: str) -> list[memoryview]:
        """Return the bytes a column has on disk; equal bytes in two tables mean equal values."""
        groups, place = self._file.metadata, self.columns.index(column)
        found = []
        for number in range(groups.num_row_groups):
            chunk = groups.row_group(number).column(place)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            found.append(memoryview(self._data)[start : start + chunk.total_compressed_size])
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, pl.exceptions.PanicException) as error:
            why = f"not a readable table ({' '.join(str(error).split())})"
            raise ManifestError(f'{self._path}: {why}; run "tokenmill verify --deep" on its folder') from error


def open_rows(folder: StageDir, commit: Commit) -> PackedTable:
    """Open a unit's table; raises ManifestError naming the file if it is not what its record says."""
    path = folder.at(commit.rows.name)
    data = folder.store.read_bytes(path)
    if sha256_hex(data) != commit.rows.sha256:
        raise ManifestError(f'{path}: sha256 differs from its record; run "tokenmill verify --deep" on its folder')
    return PackedTable(path, data)
