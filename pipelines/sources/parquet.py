"""Tables that carry the samples themselves: Parquet, Arrow and, for pictures, JSON lines.

A sample lies at a row, not at a byte, so ingest packs it into a shard once; reading one row of a Parquet file costs its
whole row group. Bytes are packed as they are. Tables of URLs are a source of their own (`urls`).
"""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from tokenmill.errors import RunError, SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.image_bytes import image_extension
from tokenmill.pipelines.sources.metadata import key_or_none, metadata_text, text_or_none
from tokenmill.pipelines.sources.named_files import named_file
from tokenmill.pipelines.sources.source import IndexRow, Modality, RawFile, list_files
from tokenmill.pipelines.sources.tables import ARROW, JSON_LINES, PARQUET, Row, matching, table_columns, table_rows
from tokenmill.pipelines.sources.text import text_bytes

Strings = Literal["base64", "path"]


class ParquetRows:
    """Rows of `column`; every other column becomes metadata.

    A picture is bytes, Hugging Face's struct of bytes and path, base64, or (`strings: path`) the name of a file, as
    seen from the table's folder. `files` selects tables: `data/train-*.parquet`, or several such patterns.
    """

    version = 2
    packs = True
    suffixes: Sequence[str] = PARQUET

    def __init__(
        self,
        *,
        url: str,
        column: str,
        modality: Modality = "image",
        key_field: str = "key",
        caption_field: str = "caption",
        strings: Strings = "base64",
        files: str | Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if strings not in ("base64", "path"):
            raise ValueError(f"strings: base64 or path, found {strings!r}")
        self.modality, self.column, self.key_field, self.caption_field = modality, column, key_field, caption_field
        self.strings, self.patterns = strings, files
        self.store = open_store(url, options)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "modality": self.modality,
            "column": self.column,
            "key_field": self.key_field,
            "caption_field": self.caption_field,
            "strings": self.strings,
        }

    def files(self) -> list[RawFile]:
        return matching(list_files(self.store, self.suffixes), self.patterns)

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        columns = table_columns(self.store, file.path)
        if columns is not None and self.column not in columns:
            raise RunError(f"{file.path}: no column {self.column!r}; it has: {', '.join(columns)}")
        for number, row in table_rows(self.store, file.path):
            yield self._row(file.path, number, row)

    def payload(self, data: bytes, extension: str) -> bytes:
        return data

    def _row(self, path: str, number: int, row: Row) -> IndexRow:
        key = f"{path}#{number}"
        if isinstance(row, SampleError):
            return IndexRow(key=key, path=path, error=row)
        key = key_or_none(row.get(self.key_field)) or key
        value = row.pop(self.column, None)
        if isinstance(value, Mapping):  # bytes and path; the path says where the picture came from
            row[self.column] = {name: part for name, part in value.items() if name != "bytes"}
        caption = text_or_none(row.get(self.caption_field))
        described = IndexRow(key=key, path=path, caption=caption, metadata=metadata_text(row))
        try:
            data, extension = self._sample(path, value)
        except SampleError as error:
            return replace(described, error=error)
        return replace(described, length=len(data), extension=extension, sha256=sha256_hex(data), payload=data)

    def _sample(self, path: str, value: Any) -> tuple[bytes, str]:
        """Return a sample's bytes and extension; raises SampleError where there is none."""
        if self.modality == "text":
            return self._text(value), "txt"
        if isinstance(value, Mapping):
            data = value.get("bytes") or self._file(path, value.get("path"))
        elif isinstance(value, str):
            data = self._file(path, value) if self.strings == "path" else _from_base64(value)
        else:
            data = value
        if not data:
            raise SampleError(f"no_{self.modality}", f"column {self.column!r} is empty")
        if not isinstance(data, bytes):
            raise SampleError(f"no_{self.modality}", f"column {self.column!r} holds {type(data).__name__}, not bytes")
        return data, image_extension(data) if self.modality == "image" else self.modality

    def _text(self, value: Any) -> bytes:
        if not value:
            raise SampleError("no_text", f"column {self.column!r} is empty")
        if not isinstance(value, str | bytes):
            raise SampleError("no_text", f"column {self.column!r} holds {type(value).__name__}, not text")
        try:
            return text_bytes(value if isinstance(value, str) else value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SampleError("bad_encoding", f"byte {error.start} of the text is not UTF-8") from error

    def _file(self, table: str, name: Any) -> bytes | None:
        """Read the file a table names; one that is not below the source, or not there, is the sample's fault."""
        if not name:
            return None
        return named_file(self.store, posixpath.dirname(table), str(name))


class ArrowRows(ParquetRows):
    """The same in Arrow's own files (Feather, IPC), and in the stream form that `datasets` keeps in its cache."""

    version = 1
    suffixes = ARROW


class JsonLinesImages(ParquetRows):
    """Pictures in JSON lines: base64 (also as `data:` URL), or `strings: path`."""

    version = 1
    suffixes = JSON_LINES


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError("bad_base64", "the column's text is not base64") from error
