"""Documents in tables beside their pictures: LLaVA's JSON with a folder, OBELICS' Parquet with bytes in its rows.

Ingest packs each document once, JSON and pictures side by side. A unit is a range of the table, since its pictures
make it large: 5,000 conversations of LLaVA's are 8 MB of JSON and half a gigabyte of pictures. Pictures are read eight
at a time; what is a URL is not fetched (that is the source `urls`' business).
"""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.reading import ordered_map
from tokenmill.pipelines.sources.documents import document_row, parsed_or_error
from tokenmill.pipelines.sources.image_bytes import image_extension
from tokenmill.pipelines.sources.json_array import element_ranges, elements_of
from tokenmill.pipelines.sources.laid_out import LaidOut, Reference, check_bytes
from tokenmill.pipelines.sources.layouts import check_layout
from tokenmill.pipelines.sources.metadata import key_or_none
from tokenmill.pipelines.sources.named_files import named_file
from tokenmill.pipelines.sources.source import IndexRow, Modality, PicturePlace, RawFile, list_files
from tokenmill.pipelines.sources.tables import ARROW, JSON_LINES, PARQUET, matching, table_rows, table_shape
from tokenmill.pipelines.sources.text import lines_of

_PLAIN_LINES = (".jsonl", ".ndjson")
_RANGE_BYTES = 8 * 2**20
_AT_ONCE, _WINDOW = 8, 16  # documents whose pictures are read, and those held


class DocumentTables:
    """Documents, one a row: in JSON (an array, or lines), Parquet or Arrow, in one of the layouts.

    Args:
        image_folder: where the pictures that rows name lie: below the source, or a folder or address of its own.
        key_field: what names a document; absent: its file and place, since LLaVA's `id` is not unique.
        files: patterns that select tables.
        rows_per_unit, range_bytes: how tables are cut, the latter for JSON lines.
    """

    modality: Modality = "document"
    version = 1
    packs = True

    def __init__(
        self, *, url: str, layout: str = "auto", image_folder: str = "", key_field: str | None = None,
        files: str | Sequence[str] | None = None, rows_per_unit: int = 5_000, range_bytes: int = _RANGE_BYTES,
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if rows_per_unit < 1 or range_bytes < 1:
            raise ValueError(f"rows_per_unit, range_bytes: at least 1, found {min(rows_per_unit, range_bytes)!r}")
        self.layout, self.key_field, self.patterns = check_layout(layout), key_field, files
        self.rows_per_unit, self.range_bytes, self.image_folder = rows_per_unit, range_bytes, image_folder
        self.store = open_store(url, options)
        is_elsewhere = "://" in image_folder or image_folder.startswith("/")
        self._pictures = open_store(image_folder, options) if is_elsewhere else self.store
        self._folder = "" if is_elsewhere else image_folder

    @property
    def settings(self) -> Mapping[str, Any]:
        key = {} if self.key_field is None else {"key_field": self.key_field}
        return {"layout": self.layout, "image_folder": self.image_folder, **key}

    def files(self) -> list[RawFile]:
        """List ranges of all tables; reads JSON arrays to their end, and of Parquet the number of rows.

        Raises:
            RunError: no table is there, or one cannot be read.
        """
        found = matching(list_files(self.store, (".json", *JSON_LINES, *PARQUET, *ARROW)), self.patterns)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [part for parts in pool.map(self._parts, found) for part in parts]

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        """Yield the documents of a range with the bytes of their pictures."""
        rows = self._rows(file)
        yield from ordered_map(partial(self._row, file.path), rows, threads=_AT_ONCE, window=_WINDOW)
        if file.extra.get("is_cut"):
            error = SampleError("truncated", "the file ends before its array does")
            yield IndexRow(key=f"{file.path}#end", path=file.path, error=error)

    def payload(self, data: bytes, extension: str) -> bytes:
        return data

    def _parts(self, file: RawFile) -> list[RawFile]:
        name = file.path.lower()
        if name.endswith(".json"):
            with self.store.open(file.path) as stream:
                ranges, is_whole = element_ranges(stream, self.rows_per_unit, f"{self.store.url}/{file.path}")
            parts = [replace(file, size=end - start, start=start, end=end) for start, end in ranges]
            return parts if is_whole else [*parts[:-1], replace(parts[-1], extra={"is_cut": True})]
        if name.endswith(_PLAIN_LINES):
            starts = range(0, max(file.size, 1), self.range_bytes)
            spans = [(start, min(start + self.range_bytes, file.size)) for start in starts]
            return [replace(file, size=end - start, start=start, end=end) for start, end in spans]
        if not name.endswith(PARQUET):
            return [file]
        rows = table_shape(self.store, file.path).rows
        spans = [(start, min(start + self.rows_per_unit, rows)) for start in range(0, rows, self.rows_per_unit)]
        sizes = [file.size * (end - start) // rows for start, end in spans]
        return [
            replace(file, size=size, start=start, end=end, unit_of_range="rows")
            for size, (start, end) in zip(sizes, spans, strict=True)
        ]

    def _rows(self, file: RawFile) -> Iterator[tuple[int, Any]]:
        """Yield (place, parsed JSON or SampleError) of every document of a range."""
        name, start = file.path.lower(), file.start or 0
        if name.endswith(".json"):
            data = self.store.read_range(file.path, start, file.size)
            yield from ((start + offset, parsed_or_error(element)) for offset, element in elements_of(data))
        elif name.endswith(_PLAIN_LINES):
            with self.store.open(file.path) as stream:
                for offset, line in lines_of(stream, start, file.end):
                    if line.strip():
                        yield offset, parsed_or_error(line)
        else:
            yield from table_rows(self.store, file.path, start, file.end)

    def _row(self, path: str, numbered: tuple[int, Any]) -> IndexRow:
        place, value = numbered
        key = f"{path}#{place}"
        if self.key_field is not None and isinstance(value, Mapping):
            key = key_or_none(value.get(self.key_field)) or key
        return document_row(key, path, value, self.layout, partial(self._found, path), packs=True)

    def _found(self, path: str, laid: LaidOut) -> list[PicturePlace]:
        pictures: list[PicturePlace] = []
        for reference in laid.references:
            pictures.append(self._placed(path, self._read(path, reference)))
            check_bytes(sum(picture.length for picture in pictures))
        return pictures

    def _placed(self, path: str, data: bytes) -> PicturePlace:
        return PicturePlace(
            path=path, length=len(data), extension=image_extension(data), sha256=sha256_hex(data), payload=data
        )  # fmt: skip

    def _read(self, table: str, reference: Reference) -> bytes:
        """Return a picture's bytes; raises SampleError where they are not to be had."""
        if reference.data is not None:
            return reference.data
        if not reference.names:
            raise SampleError("missing_picture", f"picture {reference.slot} has no name and no bytes")
        name = next((name for name in reference.names if "://" not in name), reference.names[0])
        if name.startswith("data:"):
            return _from_base64(name)
        if "://" in name:
            raise SampleError("remote_picture", "a picture is a URL; fetch it first")
        folder = self._folder if self.image_folder else posixpath.dirname(table)
        return named_file(self._pictures, folder, name, "missing_picture")


def _from_base64(url: str) -> bytes:
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError("bad_base64", "a data: URL is not base64") from error
