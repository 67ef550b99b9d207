"""A unit's table as it lies on disk: its columns are parsed when they are asked for, and keys compared without parsing.

Tables of one slice repeat its keys. Comparing their packed bytes takes 10 µs where parsing 10,000 keys takes 700. Up to
8 MiB a table is read whole and its digest compared; of a larger one (embeddings: 30 MB a slice) only the ranges of the
columns that are asked for are read, under the checksums of their pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store

_WHOLE_BYTES = 8 * 2**20


class PackedTable:
    """A Parquet table of a store; `data` are its bytes where they were read already.

    Attributes:
        columns: the names of what it holds.
    """

    def __init__(self, store: Store, path: str, data: bytes | None = None) -> None:
        self._store, self._path, self._data = store, path, data
        self._file: Any = None
        with self._opened() as file:
            self._footer = file.metadata
            self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)
            self.num_rows: int = self._footer.num_rows

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Parse some columns; raises ManifestError naming the file when it is damaged or lacks one."""
        missing = sorted(set(columns) - set(self.columns))
        if missing:
            raise ManifestError(f"{self._path}: a table without column {missing[0]!r}")
        if not columns:
            return pl.DataFrame()
        with self._opened() as file:
            # Threads of Arrow's own cost more than they bring on tables this small.
            found = file.read(list(columns), use_threads=False)
            return pl.DataFrame({name: found[name] for name in columns})

    def packed(self, column: str) -> list[bytes]:
        """Return the bytes a column has on disk; equal bytes in two tables mean equal values."""
        place, found = self.columns.index(column), []
        for number in range(self._footer.num_row_groups):
            chunk = self._footer.row_group(number).column(place)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            size = chunk.total_compressed_size
            data = self._data
            found.append(
                self._store.read_range(self._path, start, size) if data is None else data[start : start + size]
            )
        return found

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Give the file as Arrow's; one in memory is opened once."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if self._data is None:
                with self._store.open(self._path) as stream:
                    yield pq.ParquetFile(stream, page_checksum_verification=True)
            else:
                if self._file is None:
                    self._file = pq.ParquetFile(pa.BufferReader(self._data), page_checksum_verification=True)
                yield self._file
        except (pa.ArrowException, OSError, ValueError, pl.exceptions.PanicException) as error:
            why = f"not a readable table ({' '.join(str(error).split())})"
            raise ManifestError(f'{self._path}: {why}; run "tokenmill verify --deep" on its folder') from error


def open_rows(folder: StageDir, commit: Commit, *, whole_bytes: int = _WHOLE_BYTES) -> PackedTable:
    """Open a unit's table, of at most `whole_bytes` whole; raises ManifestError if it is not what its record says."""
    path = folder.at(commit.rows.name)
    if commit.rows.bytes > whole_bytes:
        return PackedTable(folder.store, path)
    data = folder.store.read_bytes(path)
    if sha256_hex(data) != commit.rows.sha256:
        raise ManifestError(f'{path}: sha256 differs from its record; run "tokenmill verify --deep" on its folder')
    return PackedTable(folder.store, path, data)
