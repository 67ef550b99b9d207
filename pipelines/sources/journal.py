"""What a unit that fetches has got so far, beside the unit's folder, so that a killed run asks for nothing twice.

Parts of at most 256 rows or 32 MiB, in the order of the rows, each one object: it works on any store and for whichever
node goes on. The price is that pictures are written twice; a kill loses the rows since the last part (and those that
came ahead of their turn). A part ends with its SHA-256, since Arrow believes the offsets of a damaged file. The journal
goes when the unit is committed; `gc` takes what a unit that never was left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from tokenmill.errors import SampleError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.sources.source import IndexRow

FOLDER = "journal"
_PART_ROWS, _PART_BYTES = 256, 32 * 2**20
_DIGEST_BYTES = 32
_PLAIN = tuple(field.name for field in fields(IndexRow) if field.name not in ("payload", "pictures", "error"))
_SCHEMA = pa.schema(
    [(name, pa.int64() if name in ("offset", "length") else pa.large_string()) for name in _PLAIN]
    + [("payload", pa.large_binary()), ("reason", pa.string()), ("message", pa.string()), ("transient", pa.bool_())]
)


class Journal:
    """The rows of one attempt at a unit; `folder` is `<stage folder>/journal/<unit>.<attempt>`."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._parts = [entry.path for entry in store.files(folder)]
        self._known = 0
        self._again: dict[int, int] = {}  # first → end of parts with rows that are fetched again

    def known(self) -> Iterator[IndexRow | None]:
        """Yield the rows that were kept, from the first on; None for one that may do better now, or is damaged."""
        for path in self._parts:
            if path != self._path(self._known):
                return  # a gap: two runs wrote parts of different lengths
            rows = _read(self._store.read_bytes(path))
            if rows is None:
                return  # damaged: it is fetched again, and written again under its name
            if None in rows:
                self._again[self._known] = self._known + len(rows)
            for row in rows:
                self._known += 1
                yield row

    def kept(self, rows: Iterator[IndexRow]) -> Iterator[IndexRow]:
        """Pass rows on, and keep those that were not known; a part with one that was fetched again is replaced."""
        part: list[IndexRow] = []
        size = first = end = 0
        for number, row in enumerate(rows):
            end = self._again.get(number, end)
            if number >= self._known or number < end:
                first = first if part else number
                part.append(row)
                size += len(row.payload or b"") + len(row.metadata)
            is_full = number >= end and (len(part) == _PART_ROWS or size >= _PART_BYTES)
            if part and (is_full or number + 1 == end):
                self._store.put(self._path(first), _written(part))
                fault_point("journal:after-part")
                part, size = [], 0
            yield row

    def remove(self) -> None:
        """Remove what there is: the unit is committed."""
        self._store.delete_many([entry.path for entry in self._store.files(self._folder)])

    def _path(self, first: int) -> str:
        return f"{self._folder}/{first:09d}.arrow"


def _written(rows: list[IndexRow]) -> bytes:
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _PLAIN}
    columns["payload"] = [row.payload for row in rows]
    for name in ("reason", "message", "transient"):
        columns[name] = [None if row.error is None else getattr(row.error, name) for row in rows]
    buffer = BytesIO()
    with pa.ipc.new_file(buffer, _SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=_SCHEMA))
    data = buffer.getvalue()
    return data + hashlib.sha256(data).digest()


def _read(data: bytes) -> list[IndexRow | None] | None:
    """Return a part's rows; None where it is damaged."""
    data, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        return None
    return [_row(record) for record in pa.ipc.open_file(data).read_all().to_pylist()]


def _row(record: dict[str, Any]) -> IndexRow | None:
    reason, message, transient = (record.pop(name) for name in ("reason", "message", "transient"))
    error = None if reason is None else SampleError(reason, message, transient=transient)
    return trusted(IndexRow(**record, error=error))


def trusted(row: IndexRow) -> IndexRow | None:
    """Return a row that need not be fetched again: a lasting failure, or a picture with its own digest."""
    if row.error is not None:
        return None if row.error.transient else replace(row, payload=None)
    return row if row.payload is not None and sha256_hex(row.payload) == row.sha256 else None
