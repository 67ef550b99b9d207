"""Tables as rows, whole or a range of them: Parquet, Arrow, CSV, TSV, JSON lines, the last three also compressed.

Parquet knows its number of rows and gives a range for the price of its row groups. All other formats are read from the
front, 0.1 to 1 GB/s: a table of many millions of rows is better Parquet. CSV values stay text.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.ipc

from tokenmill.errors import RunError, SampleError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.sources.source import RawFile

PARQUET = (".parquet",)
ARROW = (".arrow", ".feather", ".ipc")
JSON_LINES = tuple(f"{name}{packed}" for name in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst"))
SEPARATED = tuple(f"{name}{packed}" for name in (".csv", ".tsv") for packed in ("", ".gz", ".zst"))
ALL_TABLES = (*PARQUET, *ARROW, *JSON_LINES, *SEPARATED)
Row = dict[str, Any] | SampleError
_BATCH_ROWS = 256
_LONGEST_LINE = 64 * 2**20
_UNREADABLE = (pa.ArrowException, OSError, EOFError, ValueError, ArithmeticError, zlib.error, csv.Error)
_ODD_CELL = (pa.ArrowException, ValueError, ArithmeticError)

csv.field_size_limit(_LONGEST_LINE)


@dataclass(frozen=True, slots=True)
class TableShape:
    """How many rows a table has, and its columns; None where every row has its own (JSON lines)."""

    rows: int
    columns: tuple[str, ...] | None


def matching(files: Sequence[RawFile], patterns: str | Sequence[str] | None) -> list[RawFile]:
    """Return the files whose path fits a glob pattern (`*` also crosses folders); raises RunError if none does."""
    if patterns is None:
        return list(files)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    found = [file for file in files if any(fnmatchcase(file.path, pattern) for pattern in wanted)]
    if not found:
        raise RunError(f"no file fits {' or '.join(wanted)}; the first there is: {files[0].path}")
    return found


def table_shape(store: Store, path: str, *, quotes: bool | None = None) -> TableShape:
    """Return a table's shape; raises RunError naming the file when it cannot be read to its end.

    `quotes` says whether quotation marks enclose fields of CSV and TSV; None: those of CSV alone.
    """
    name = path.lower()
    with _opened(store, path) as stream:
        if name.endswith(PARQUET):
            table = _parquet(stream)
            return TableShape(table.metadata.num_rows, tuple(table.schema_arrow.names))
        if name.endswith(ARROW):
            schema, batches = _arrow_batches(stream)
            return TableShape(sum(batch.num_rows for batch in batches), tuple(schema.names))
        if name.endswith(JSON_LINES):
            return TableShape(sum(1 for _ in _lines(stream)), None)
        reader = _separated(stream, name, quotes)
        columns = tuple(next(reader, []))
        return TableShape(sum(1 for fields in reader if fields), columns)


def table_columns(store: Store, path: str) -> tuple[str, ...] | None:
    """Return a table's columns without reading its rows; raises RunError naming the file when it cannot be read."""
    name = path.lower()
    with _opened(store, path) as stream:
        if name.endswith(PARQUET):
            return tuple(_parquet(stream).schema_arrow.names)
        if name.endswith(ARROW):
            return tuple(_arrow_batches(stream)[0].names)
        return None if name.endswith(JSON_LINES) else tuple(next(_separated(stream, name, None), []))


def table_rows(
    store: Store, path: str, start: int = 0, end: int | None = None, *, quotes: bool | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of the rows [start, end) of a table; a row that cannot be parsed is a SampleError.

    `quotes` says whether quotation marks enclose fields of CSV and TSV; None: those of CSV alone.

    Raises:
        RunError: the table cannot be read.
    """
    name = path.lower()
    with _opened(store, path) as stream:
        if name.endswith(PARQUET):
            yield from _parquet_rows(stream, start, end)
        elif name.endswith(ARROW):
            rows = (row for batch in _arrow_batches(stream)[1] for row in _small_batches(batch))
            yield from islice(enumerate(rows), start, end)
        elif name.endswith(JSON_LINES):
            yield from _each(_lines(stream), start, end, _parsed)
        else:
            reader = _separated(stream, name, quotes)
            columns = next(reader, [])
            yield from _each((fields for fields in reader if fields), start, end, lambda row: _named(columns, row))


@contextlib.contextmanager
def _opened(store: Store, path: str) -> Iterator[IO[bytes]]:
    """Open a table, unpacked; what makes it unreadable becomes a RunError that names it."""
    with store.open(path) as stream:
        try:
            if path.lower().endswith(".gz"):
                yield cast(IO[bytes], gzip.GzipFile(fileobj=stream))
            elif path.lower().endswith(".zst"):
                yield cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(stream, "zstd")))
            else:
                yield stream
        except _UNREADABLE as error:
            raise RunError(f"{store.url}/{path}: not a readable table ({' '.join(str(error).split())})") from error


def _parquet(stream: IO[bytes]) -> Any:
    """Open a Parquet file; its library takes 15 ms to import, which other sources need not pay."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(stream)


def _parquet_rows(stream: IO[bytes], start: int, end: int | None) -> Iterator[tuple[int, Row]]:
    table = _parquet(stream)
    last = table.metadata.num_rows if end is None else end
    first = 0
    for group in range(table.metadata.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if first < last and start < first + count:
            number = first
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group]):
                if number < last and start < number + batch.num_rows:
                    rows = zip(range(number, number + batch.num_rows), _records(batch), strict=True)
                    yield from ((place, row) for place, row in rows if start <= place < last)
                number += batch.num_rows
        first += count


def _arrow_batches(stream: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open an IPC file, or the stream form of one that Hugging Face's `datasets` writes under the same name."""
    try:
        file = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        reader = pa.ipc.open_stream(stream)
        return reader.schema, iter(reader)
    return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


def _small_batches(batch: pa.RecordBatch) -> Iterator[Row]:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield from _records(batch.slice(start, _BATCH_ROWS))


def _records(batch: pa.RecordBatch) -> list[Row]:
    """Return a batch's rows; one with a cell that Python has no value for (a date beyond 9999) is a SampleError."""
    try:
        return cast(list[Row], batch.to_pylist())
    except _ODD_CELL:
        return [_record(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _record(row: pa.RecordBatch) -> Row:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except _ODD_CELL as error:
            return SampleError("bad_row", f"what column {name!r} holds cannot be read ({type(error).__name__})")
    return cast(Row, row.to_pylist()[0])


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(_LONGEST_LINE):
        if line.strip():
            yield line


def _separated(stream: IO[bytes], name: str, quotes: bool | None) -> Iterator[list[str]]:
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")
    is_tsv = ".tsv" in name.rsplit("/", 1)[-1]
    has_quotes = not is_tsv if quotes is None else quotes
    delimiter = "\t" if is_tsv else ","
    if has_quotes:
        return csv.reader(text, delimiter=delimiter)
    return csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _each(
    items: Iterable[Any], start: int, end: int | None, parse: Callable[[Any], dict[str, Any]]
) -> Iterator[tuple[int, Row]]:
    for number, item in islice(enumerate(items), start, end):
        try:
            yield number, parse(item)
        except SampleError as error:
            yield number, error


def _named(columns: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    if len(fields) != len(columns):
        raise SampleError("bad_row", f"{len(fields)} fields where the header has {len(columns)}")
    return {column: field or None for column, field in zip(columns, fields, strict=True)}


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SampleError("bad_encoding", f"byte {error.start} of the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", "the line is not JSON") from error
    if not isinstance(row, dict):
        raise SampleError("bad_json", "the line is not an object")
    return row
