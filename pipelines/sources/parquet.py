"""Parquet tables that carry the samples themselves, as bytes (pictures) or strings (text).

A sample lies at a row, not at a byte, so ingest packs it into a shard once; reading one row of a Parquet file costs its
whole row group. Tables of URLs are refused by name: fetching belongs to the issue on images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from tokenmill.errors import RunError, SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.source import IndexRow, Modality, RawFile, list_files

_BATCH_ROWS = 256


class ParquetRows:
    """Rows of `column`, bytes for pictures and strings for text; every other column becomes metadata."""

    version = 1
    packs = True

    def __init__(
        self,
        *,
        url: str,
        column: str,
        modality: Modality = "image",
        key_field: str = "key",
        caption_field: str = "caption",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.modality, self.column, self.key_field, self.caption_field = modality, column, key_field, caption_field
        self.store = open_store(url, options)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "modality": self.modality,
            "column": self.column,
            "key_field": self.key_field,
            "caption_field": self.caption_field,
        }

    def files(self) -> list[RawFile]:
        return list_files(self.store, (".parquet",))

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        with self.store.open(file.path) as stream:
            table = pq.ParquetFile(stream)
            if self.column not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise RunError(f"{file.path}: no column {self.column!r}; it has: {names}")
            number = 0
            for batch in table.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield self._row(file.path, number, row)
                    number += 1

    def payload(self, data: bytes, extension: str) -> bytes:
        return data

    def _row(self, path: str, number: int, row: dict[str, Any]) -> IndexRow:
        key = str(row.get(self.key_field) or f"{path}#{number}")
        value = row.pop(self.column)
        if not value:
            return IndexRow(
                key=key, path=path, error=SampleError(f"no_{self.modality}", f"column {self.column!r} is empty")
            )
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
        caption = row.get(self.caption_field)
        return IndexRow(
            key=key,
            path=path,
            length=len(data),
            extension="txt" if self.modality == "text" else "image",
            sha256=sha256_hex(data),
            caption=str(caption) if caption is not None else None,
            metadata=json.dumps(row, sort_keys=True, ensure_ascii=False, default=str),
            payload=data,
        )
