"""JSON Lines of text. A line belongs to the byte range where it starts, so a large file is many inputs.

A line that is not UTF-8, not JSON or has no text is a failed row with its own reason; the others are untouched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.metadata import metadata_text
from tokenmill.pipelines.sources.source import IndexRow, Modality, RawFile, list_files

_RANGE_BYTES = 256 * 2**20
_LONGEST_LINE = 64 * 2**20


class JsonLines:
    """Documents, one JSON object a line: text in `text_field`, key in `key_field` (else file and offset)."""

    version = 1
    packs = False
    modality: Modality = "text"

    def __init__(
        self,
        *,
        url: str,
        text_field: str = "text",
        key_field: str = "id",
        range_bytes: int = _RANGE_BYTES,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.text_field, self.key_field, self.range_bytes = text_field, key_field, range_bytes
        self.store = open_store(url, options)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"text_field": self.text_field, "key_field": self.key_field}

    def files(self) -> list[RawFile]:
        return list_files(self.store, (".jsonl", ".ndjson"), whole_bytes=self.range_bytes)

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        with self.store.open(file.path) as stream:
            for offset, line in lines_of(stream, file.start or 0, file.end):
                if line.strip():
                    yield self._row(file.path, offset, line)

    def payload(self, data: bytes, extension: str) -> bytes:
        return str(json.loads(data)[self.text_field]).encode("utf-8", "surrogatepass")

    def _row(self, path: str, offset: int, line: bytes) -> IndexRow:
        key = f"{path}#{offset}"
        try:
            document = _parsed(line, self.text_field)
        except SampleError as error:
            return IndexRow(key=key, path=path, offset=offset, length=len(line), error=error)
        text = document.pop(self.text_field)
        return IndexRow(
            key=key if document.get(self.key_field) is None else str(document[self.key_field]),
            path=path,
            offset=offset,
            length=len(line),
            extension="json",
            sha256=sha256_hex(text.encode("utf-8", "surrogatepass")),
            metadata=metadata_text(document),
        )


def lines_of(stream: IO[bytes], start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of every line that starts in [start, end)."""
    if start:
        stream.seek(start - 1)
        stream.readline(_LONGEST_LINE)
    offset = stream.tell()
    while end is None or offset < end:
        line = stream.readline(_LONGEST_LINE)
        if not line:
            return
        yield offset, line
        offset += len(line)


def _parsed(line: bytes, text_field: str) -> dict[str, Any]:
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SampleError("bad_encoding", f"byte {error.start} of the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", "the line is not JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get(text_field), str):
        raise SampleError("no_text", f"the line has no text field {text_field!r}")
    text_bytes(document[text_field])
    return document


def text_bytes(text: str) -> bytes:
    """Return a document as UTF-8; raises SampleError where it cannot be one, or says nothing."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SampleError("bad_encoding", "the text holds half of a surrogate pair") from error
    if not text.strip():
        raise SampleError("empty_text", "the text is empty")
    return data
