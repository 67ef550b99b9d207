"""Tables of URLs, fetched once and packed: a row of the table is a row of the index, with a reason where it failed.

A unit is a range of rows (10,000, as in img2dataset's shards), because nothing of a unit can be trusted before all of
it is there. What a killed run had fetched is not fetched again (`journal.py`), nor what an earlier attempt has.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RunError, SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.takedowns import REASON
from tokenmill.pipelines.sources.download_settings import DownloadSettings
from tokenmill.pipelines.sources.image_bytes import image_extension
from tokenmill.pipelines.sources.metadata import key_or_none, metadata_text, text_or_none
from tokenmill.pipelines.sources.polite_hosts import HostMemory
from tokenmill.pipelines.sources.source import FetchContext, IndexRow, Modality, RawFile, list_files
from tokenmill.pipelines.sources.tables import ALL_TABLES, Row, TableShape, matching, table_rows, table_shape

if TYPE_CHECKING:
    from tokenmill.pipelines.sources.download_thread import DownloadThread

_OURS = ("key", "url", "status", "http_status", "sha256")  # what the json of a picture says besides the table's columns
_WINDOW_ROWS = 1024  # under way or waiting to be packed: many hosts at once, even where neighbours share one
_OFFLINE_ROWS, _OFFLINE_HOSTS = 100, 10
_UNREACHED = ("dns", "connect", "timeout")
_UNASKED = ("bad_url", "private_address", "host_busy")
_CREDENTIALS = re.compile(r"^(\s*[a-z]+://)[^/?#\\]*@", re.IGNORECASE)


@dataclass(slots=True)
class _Pending:
    """A row on its way: `future` is set while it is fetched, `row` is what is known of it until then."""

    row: IndexRow
    columns: Mapping[str, Any]
    host: str = ""
    expected_sha256: str | None = None
    future: Future[bytes] | None = None
    held_bytes: int = 0


class UrlTables:
    """Pictures at the URLs in `url_field`; all other columns become metadata, and stay what they were."""

    version = 1
    packs = True
    modality: Modality = "image"

    def __init__(
        self,
        *,
        url: str,
        url_field: str = "url",
        caption_field: str = "caption",
        key_field: str | None = None,
        sha256_field: str | None = None,
        quotes: bool | None = None,
        files: str | Sequence[str] | None = None,
        rows_per_unit: int = 10_000,
        options: Mapping[str, Any] | None = None,
        **download: Any,
    ) -> None:
        if rows_per_unit < 1:
            raise ValueError(f"rows_per_unit: at least 1, found {rows_per_unit!r}")
        self.fields = {"url_field": url_field, "caption_field": caption_field}
        self.fields |= {n: f for n, f in (("key_field", key_field), ("sha256_field", sha256_field)) if f is not None}
        self.rows_per_unit, self.patterns, self.quotes = rows_per_unit, files, quotes
        self._hosts: dict[str, HostMemory] = {}  # what one worker knows of hosts, over all its units
        self.download = DownloadSettings(**download)
        self.store = open_store(url, options)

    @property
    def settings(self) -> Mapping[str, Any]:
        quotes = {} if self.quotes is None else {"quotes": self.quotes}
        return {**self.fields, **quotes, **self.download.identity}

    def files(self) -> list[RawFile]:
        """List ranges of rows of all tables; reads each table's size, and all of it where that is not Parquet."""
        found = matching(list_files(self.store, ALL_TABLES), self.patterns)
        with ThreadPoolExecutor(16) as pool:
            shapes = pool.map(lambda file: table_shape(self.store, file.path, quotes=self.quotes), found)
            return [part for file, shape in zip(found, shapes, strict=True) for part in self._parts(file, shape)]

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        return self.fetch([file], FetchContext())

    def fetch(self, files: Sequence[RawFile], context: FetchContext) -> Iterator[IndexRow]:
        """Yield every row of the files in order, fetching ahead what is not known.

        Raises:
            RunError: a table cannot be read, or no host of the first hundred rows can be reached.
        """
        from tokenmill.pipelines.sources.download_thread import DownloadThread

        rows = chain.from_iterable(self._rows(file) for file in files)
        with DownloadThread(self.download, self._hosts) as thread:
            yield from self._results(rows, context, thread)

    def payload(self, data: bytes, extension: str) -> bytes:
        return data

    def _parts(self, file: RawFile, shape: TableShape) -> Iterator[RawFile]:
        wanted = [f for name, f in self.fields.items() if (name, f) != ("caption_field", "caption")]
        missing = [] if shape.columns is None else [f for f in wanted if f not in shape.columns]
        if missing:
            raise RunError(f"{file.path}: no column {missing[0]!r}; it has: {', '.join(shape.columns or ())}")
        for start in range(0, shape.rows, self.rows_per_unit):
            end = min(start + self.rows_per_unit, shape.rows)
            size = file.size * (end - start) // shape.rows
            yield replace(file, size=size, start=start, end=end, unit_of_range="rows")

    def _rows(self, file: RawFile) -> Iterator[tuple[str, int, Row]]:
        for number, row in table_rows(self.store, file.path, file.start or 0, file.end, quotes=self.quotes):
            yield file.path, number, row

    def _results(
        self, rows: Iterator[tuple[str, int, Row]], context: FetchContext, thread: DownloadThread
    ) -> Iterator[IndexRow]:
        """Keep a window of rows under way, and yield them in order."""
        pending: deque[_Pending] = deque()
        offline = _Offline()
        begun = done = ahead_bytes = 0
        seen: set[str] = set()
        exhausted = False
        while not exhausted or pending:
            while not exhausted and len(pending) < _WINDOW_ROWS and ahead_bytes <= self.download.bytes_ahead:
                found = next(rows, None)
                if found is None:
                    exhausted = True
                    break
                pending.append(self._begun(found, begun, seen, context, thread))
                ahead_bytes += pending[-1].held_bytes
                begun += 1
            if pending:
                first = pending.popleft()
                ahead_bytes -= first.held_bytes
                yield from self._finished(first, done, thread, offline)
                done += 1

    def _begun(
        self, found: tuple[str, int, Row], place: int, seen: set[str], context: FetchContext, thread: DownloadThread
    ) -> _Pending:
        """Begin to fetch a row, unless what becomes of it is known."""
        path, number, columns = found
        known = next(context.known, None)
        if known is not None:
            seen.add(known.key)
            return _Pending(known, {}, held_bytes=len(known.payload or b""))
        key = f"{path}#{number}"
        if isinstance(columns, SampleError):
            return _Pending(IndexRow(key=key, path=path, error=columns), {})
        key = key_or_none(self._value(columns, "key_field")) or key
        url = text_or_none(self._value(columns, "url_field")) or ""
        if (bare := _CREDENTIALS.sub(r"\1", url)) != url:
            url, columns = bare, {**columns, self.fields["url_field"]: bare}
        metadata = _described(columns, key, url)
        caption = text_or_none(self._value(columns, "caption_field"))
        row = IndexRow(key=key, path=path, caption=caption, metadata=metadata_text(metadata))
        refusal = self._refusal(row, url, seen, context)
        seen.add(key)
        if refusal is not None:
            return _Pending(_failed(row, metadata, refusal), metadata)
        expected = (text_or_none(self._value(columns, "sha256_field")) or "").strip().lower() or None
        return _Pending(row, metadata, _host(url), expected, thread.submit(place, url))

    def _value(self, columns: Mapping[str, Any], name: str) -> Any:
        """Return what a row has in the field of some name; None where that field is not set."""
        field = self.fields.get(name)
        return None if field is None else columns.get(field)

    def _refusal(self, row: IndexRow, url: str, seen: set[str], context: FetchContext) -> SampleError | None:
        """Say why a row is not even asked for, if it is not."""
        if row.key in seen:
            return SampleError("duplicate_key", "an earlier sample has this key")
        if context.is_unwanted(row.key, row.metadata):
            return SampleError(REASON, "was taken down")
        return None if url else SampleError("no_url", f"column {self.fields['url_field']!r} is empty")

    def _finished(self, pending: _Pending, place: int, thread: DownloadThread, offline: _Offline) -> Iterator[IndexRow]:
        if pending.future is None:
            yield pending.row
            return
        try:
            data = thread.result(place, pending.future)
        except SampleError as error:
            offline.note(error, pending.host)
            yield _failed(pending.row, pending.columns, error)
            return
        offline.note(None, pending.host)
        try:
            yield _succeeded(pending, data)
        finally:
            thread.release(len(data))


def _described(columns: Mapping[str, Any], key: str, url: str) -> dict[str, Any]:
    """Return all columns of a table and the URL; a column that has one of our names for something else is renamed."""
    ours = {"key": key, "url": url}
    described: dict[str, Any] = {}
    for name, value in columns.items():
        if name in _OURS and value != ours.get(name):
            name = f"original_{name}"
            while name in columns:
                name = f"original_{name}"
        described[name] = value
    return {**described, "url": url}


def _succeeded(pending: _Pending, data: bytes) -> IndexRow:
    sha256 = sha256_hex(data)
    try:
        extension = image_extension(data)  # here and not among the downloads: a hostile header takes seconds
        if pending.expected_sha256 not in (None, sha256):
            raise SampleError("hash_mismatch", "not the bytes that the table gives the sha256 of")
    except SampleError as error:
        return _failed(pending.row, pending.columns, error)
    facts = {"status": "success", "http_status": 200, "sha256": sha256}
    return replace(
        pending.row,
        length=len(data),
        extension=extension,
        sha256=sha256,
        metadata=metadata_text({**pending.columns, **facts}),
        payload=data,
    )


def _failed(row: IndexRow, columns: Mapping[str, Any], error: SampleError) -> IndexRow:
    facts: dict[str, Any] = {"status": error.reason}
    if error.reason.startswith("http_"):
        facts["http_status"] = int(error.reason.removeprefix("http_"))
    return replace(row, metadata=metadata_text({**columns, **facts}), error=error)


class _Offline:
    """Tells a machine without a network from dead links: of those, some answer among the first hundred of a unit."""

    def __init__(self) -> None:
        self._rows = 0
        self._hosts: set[str] = set()
        self._has_answer = False

    def note(self, error: SampleError | None, host: str) -> None:
        if error is not None and error.reason in _UNASKED:
            return
        if error is None or error.reason not in _UNREACHED:
            self._has_answer = True
        if error is None or self._has_answer:
            return
        self._rows += 1
        self._hosts.add(host)
        if self._rows >= _OFFLINE_ROWS and len(self._hosts) >= _OFFLINE_HOSTS:
            raise RunError(
                f"the first {self._rows} URLs, of {len(self._hosts)} hosts, could not be reached, the last with: "
                f"{error}; see to the network and run it again, it resumes"
            )


def _host(url: str) -> str:
    """Return a URL's host as it is written, to count hosts by; any text has one."""
    return url.partition("://")[2].partition("/")[0].lower()
