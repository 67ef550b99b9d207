"""What a source is: raw files read as they are, indexed once, and read back sample by sample.

Indexing never rewrites what already lies in shards: the index says which bytes of which file are the sample. Only loose
files are packed (an object store hates a million small objects), in the same layout as the shards that others bring.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import polars as pl

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.manifests.records import InputRef
from tokenmill.manifests.storage import Store
from tokenmill.plugins import build

Modality = Literal["image", "video", "text", "document"]
_MARK_BYTES = 65_536

INDEX_SCHEMA = 1
INDEX_COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "path": pl.String,  # of the file that holds the sample, relative to the source (or to this folder, if packed)
    "packed": pl.Boolean,
    "offset": pl.Int64,
    "length": pl.Int64,
    "extension": pl.String,
    "sha256": pl.String,
    "caption": pl.String,
    "metadata": pl.String,  # what the source says about the sample, as JSON
    "fail_stage": pl.String,
    "fail_reason": pl.String,
    "fail_message": pl.String,
    "fail_transient": pl.Boolean,
}
VIDEO_INDEX_SCHEMA = 2  # 1 had no seconds; what reads an index takes both
VIDEO_INDEX_COLUMNS: dict[str, Any] = {
    **INDEX_COLUMNS,
    "seconds": pl.Float64,  # a film's duration by its own header, which may lie; null where it does not say
}
DOCUMENT_INDEX_SCHEMA = 3
PICTURE = pl.Struct(
    {"path": pl.String, "offset": pl.Int64, "length": pl.Int64, "extension": pl.String, "sha256": pl.String}
)
DOCUMENT_INDEX_COLUMNS: dict[str, Any] = {
    **INDEX_COLUMNS,  # the place is that of the document's JSON
    "pictures": pl.List(PICTURE),  # in the order of their numbers
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """A file of a source; `mark` hashes its size, its first and its last 64 KiB: cheap, and moves with the file.

    A change in the middle that keeps the size is not seen by `mark`. `verify` does not see it either: an ingest folder
    keeps no address of its source, so only packed archives are compared with the index.
    """

    path: str
    size: int
    mark: str
    start: int | None = None
    end: int | None = None
    unit_of_range: str = "bytes"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> InputRef:
        unit = None if self.start is None else self.unit_of_range
        return InputRef(name=self.path, digest=self.mark, start=self.start, end=self.end, unit_of_range=unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePlace:
    """Where a picture of a document lies; `payload` is set where ingest has to pack it."""

    path: str
    offset: int = 0
    length: int = 0
    extension: str
    sha256: str
    payload: bytes | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The picture as an index has it."""
        return {"path": self.path, "offset": self.offset, "length": self.length, "extension": self.extension,
                "sha256": self.sha256}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One sample of a raw file, or one failure; `payload` is set where ingest has to pack it.

    Of a document `pictures` are its pictures, and everything else speaks of its JSON.
    """

    key: str
    path: str
    offset: int = 0
    length: int = 0
    extension: str = ""
    sha256: str = ""
    caption: str | None = None
    metadata: str = "{}"
    payload: bytes | None = None
    seconds: float | None = None
    pictures: tuple[PicturePlace, ...] = ()
    error: SampleError | None = None


class Source(Protocol):
    """A kind of raw data. `version` counts as part of the ingest settings; raise it when the rows change."""

    modality: Modality
    packs: bool
    version: int
    store: Store

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of the recipe determines the rows (not where the files lie)."""
        ...

    def files(self) -> list[RawFile]:
        """List the raw files, in the order of the source."""
        ...

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        """Read one file (or its byte range) and yield its samples and failures, in order."""
        ...

    def payload(self, data: bytes, extension: str) -> bytes:
        """Turn the indexed bytes into the sample's own: itself for media, the text field of a line for text."""
        ...


@dataclass(frozen=True, kw_only=True)
class FetchContext:
    """What a source that fetches is told about its unit.

    Attributes:
        known: the unit's rows as far as they are known, in order; None, or the end: that row has to be fetched.
        is_unwanted: says of a key and metadata whether a takedown list speaks of the sample: it is not asked for.
    """

    known: Iterator[IndexRow | None] = field(default_factory=lambda: iter(()))
    is_unwanted: Callable[[str, str], bool] = lambda key, metadata: False


@runtime_checkable
class FetchingSource(Protocol):
    """A source whose samples are dear to get: it is given what earlier tries got, and what it must not get."""

    def fetch(self, files: Sequence[RawFile], context: FetchContext) -> Iterator[IndexRow]:
        """Yield the samples and failures of a unit's files, in order, one for every row."""
        ...


BUILT_IN = {
    "webdataset": "tokenmill.pipelines.sources.webdataset:WebDatasetSource",
    "images": "tokenmill.pipelines.sources.files:ImageFolder",
    "videos": "tokenmill.pipelines.sources.files:VideoFolder",
    "jsonl": "tokenmill.pipelines.sources.text:JsonLines",
    "parquet": "tokenmill.pipelines.sources.parquet:ParquetRows",
    "arrow": "tokenmill.pipelines.sources.parquet:ArrowRows",
    "jsonl-images": "tokenmill.pipelines.sources.parquet:JsonLinesImages",
    "urls": "tokenmill.pipelines.sources.urls:UrlTables",
    "documents": "tokenmill.pipelines.sources.document_tables:DocumentTables",
}
_INDEXES: dict[str, tuple[int, dict[str, Any]]] = {
    "video": (VIDEO_INDEX_SCHEMA, VIDEO_INDEX_COLUMNS),
    "document": (DOCUMENT_INDEX_SCHEMA, DOCUMENT_INDEX_COLUMNS),
}


def index_columns(modality: Modality) -> dict[str, Any]:
    """Return the columns of a modality's index."""
    return _INDEXES.get(modality, (INDEX_SCHEMA, INDEX_COLUMNS))[1]


def columns_of_index(found: Collection[str]) -> dict[str, Any]:
    """Return the columns of an index by those that a table of it has."""
    modality = "video" if "seconds" in found else "document" if "pictures" in found else "image"
    return index_columns(cast(Modality, modality))


def index_schema(modality: Modality) -> int:
    """Return the version of a modality's index: pictures and texts keep theirs, and so their folders."""
    return _INDEXES.get(modality, (INDEX_SCHEMA, INDEX_COLUMNS))[0]


def open_source(name: str, settings: Mapping[str, Any]) -> Source:
    """Build a source from its section of the recipe; third parties join by `tokenmill.sources` entry points."""
    options = {key: value for key, value in settings.items() if key not in ("kind", "licence")}
    try:
        return cast(Source, build("source", settings["kind"], options, BUILT_IN, "tokenmill.sources"))
    except RecipeError as error:
        raise RecipeError(f"sources.{name}: {error}") from error


def list_files(store: Store, suffixes: Sequence[str], *, whole_bytes: int | None = None) -> list[RawFile]:
    """List a source's files with one of some suffixes, marked; those above `whole_bytes` as byte ranges."""
    found = [entry for entry in store.files() if entry.path.lower().endswith(tuple(suffixes))]
    if not found:
        raise RunError(f"{store.url}: no file ends in {' or '.join(suffixes)}")
    with ThreadPoolExecutor(16) as pool:
        marks = pool.map(lambda entry: _mark(store, entry.path, entry.size), found)
    files: list[RawFile] = []
    for entry, mark in zip(found, marks, strict=True):
        if whole_bytes is None or entry.size <= whole_bytes:
            files.append(RawFile(path=entry.path, size=entry.size, mark=mark))
            continue
        for start in range(0, entry.size, whole_bytes):
            end = min(start + whole_bytes, entry.size)
            files.append(RawFile(path=entry.path, size=end - start, mark=mark, start=start, end=end))
    return files


def local_mark(path: Path) -> str:
    """Return the mark of a file on the local disk."""

    def read(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    with path.open("rb") as file:
        return _mark_of(read, file.seek(0, os.SEEK_END))


def _mark(store: Store, path: str, size: int) -> str:
    return _mark_of(lambda start, length: store.read_range(path, start, length), size)


def _mark_of(read: Callable[[int, int], bytes], size: int) -> str:
    state = hashlib.sha256(str(size).encode())
    head = min(size, _MARK_BYTES)
    state.update(read(0, head))
    tail = min(size - head, _MARK_BYTES)
    state.update(read(size - tail, tail))
    return state.hexdigest()
