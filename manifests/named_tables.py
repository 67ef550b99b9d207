"""Tables whose names carry digits of their content's digest: read without their records, by plans and trainers.

Columns of few distinct strings may be read as codes into a dictionary: a hundred million rows then make no object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.stagedir import parse_table
from tokenmill.manifests.storage import Store

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

_HINT = 'run "tokenmill verify --deep" on its folder'


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTable:
    """The bytes of a Parquet table, whose digest was compared with the digits in its name."""

    path: str
    data: bytes

    def frame(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """Parse columns, or all; raises ManifestError naming the table when it is damaged or lacks one."""
        try:
            return parse_table(self.data, columns)
        except ManifestError as error:
            raise ManifestError(f"{self.path}: {error}; {_HINT}") from error

    def codes(self, columns: Sequence[str]) -> list[pa.DictionaryArray]:
        """Read columns of strings as codes (int32, nulls kept) into the distinct ones; raises as `frame`."""
        import pyarrow.parquet as pq

        with self._damage():
            file = pq.ParquetFile(BytesIO(self.data), read_dictionary=list(columns), page_checksum_verification=True)
            return [_one_dictionary(column) for column in file.read(list(columns)).select(columns).columns]

    def arrays(
        self, strings: Sequence[str], numbers: Sequence[str]
    ) -> tuple[list[pa.DictionaryArray], NDArray[np.int64]]:
        """Read columns of strings as `codes`, and of whole numbers as an array (N, C), nulls as 0; raises as `frame`.

        In one thread: a table of thousands of rows is there before others have started.
        """
        import pyarrow.parquet as pq

        with self._damage():
            file = pq.ParquetFile(BytesIO(self.data), read_dictionary=list(strings), page_checksum_verification=True)
            table = file.read([*strings, *numbers], use_threads=False)
            found = [_one_dictionary(column) for column in table.select(strings).columns]
            columns = table.select(numbers).columns
            whole = np.empty((len(table), len(columns)), np.int64)
            for place, column in enumerate(columns):
                whole[:, place] = _whole_numbers(column)
            return found, whole

    @contextmanager
    def _damage(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except KeyError as error:
            name = error.args[0].decode()
            raise ManifestError(f"{self.path}: a table without column {name!r}; {_HINT}") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            told = " ".join(str(error).split())
            raise ManifestError(f"{self.path}: not a readable table ({told}); {_HINT}") from error


def open_named_table(store: Store, path: str) -> NamedTable:
    """Read a table's bytes; raises ManifestError naming it when their digest is not the one in its name.

    A plan and a trainer read tables without their records; 32 bits are enough to notice damage.
    """
    data = store.read_bytes(path)
    digits = path.rsplit("/", 1)[-1].split(".", 1)[0].rpartition("-")[2]
    if sha256_hex(data)[:8] != digits:
        raise ManifestError(f"{path}: sha256 differs from the digits in its name; {_HINT}")
    return NamedTable(path=path, data=data)


def _whole_numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Give the numbers of a column, nulls as 0, by their memory: `fill_null` imports pandas, a quarter of a second."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ValueError(f"a column of {column.type} where one of whole numbers was expected")
    kind = f"{'i' if pa.types.is_signed_integer(column.type) else 'u'}{column.type.bit_width // 8}"
    return np.concatenate([np.empty(0, np.int64), *(_numbers(chunk, kind) for chunk in column.chunks if len(chunk))])


def _numbers(chunk: pa.Array, kind: str) -> NDArray[np.int64]:
    is_there, values = chunk.buffers()
    here = slice(chunk.offset, chunk.offset + len(chunk))
    numbers = np.frombuffer(values, kind)[here].astype(np.int64)
    if kind == "u8" and (numbers < 0).any():
        raise ValueError("a number of 2^63 or more")
    if chunk.null_count:
        bits = np.unpackbits(np.frombuffer(is_there, np.uint8), bitorder="little")
        numbers[bits[here] == 0] = 0
    return numbers


def _one_dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Join the chunks of a column, one a row group, under one dictionary."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):  # a column of another kind than strings
        raise ValueError(f"a column of {column.type} where one of strings was expected")
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], column.type)
    return whole
