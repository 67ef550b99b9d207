"""Stage ingest: raw files → an index, one row a sample, with the bytes' place and digest.

Shards and videos stay where they are. Loose files, rows of tables and what URLs lead to are packed into tars of
img2dataset's layout (`<key>.<ext>`, `.txt`, `.json`), in the order of the source.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.identity import digest_of_rows
from tokenmill.manifests.records import Commit, Counts
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import REASON, Takedowns, read_takedowns
from tokenmill.pipelines.document_bytes import raw_bytes
from tokenmill.pipelines.earlier import earlier_rows
from tokenmill.pipelines.jobs import Job, JobResult, StagedArchive, StageWork, Target, Unit, UnitOutput, publish
from tokenmill.pipelines.reading import ordered_map
from tokenmill.pipelines.sources.journal import FOLDER as JOURNAL
from tokenmill.pipelines.sources.journal import Journal
from tokenmill.pipelines.sources.source import (
    INDEX_COLUMNS,
    FetchContext,
    FetchingSource,
    IndexRow,
    RawFile,
    Source,
    index_columns,
    index_schema,
    open_source,
)
from tokenmill.pipelines.units import group_files

VERSION = 1
_FILMS = 1024  # of a unit, on average
_HEADERS_AT_ONCE = 8
ALONE = ("webdataset", "parquet", "arrow", "jsonl", "jsonl-images", "urls", "documents")


def ingest_work(store: Store, name: str, settings: Mapping[str, Any], *, unit_bytes: int) -> StageWork:
    """Describe the ingest of one source: its files, grouped into units."""
    source = open_source(name, settings)
    config = StageConfig(
        stage="ingest",
        version=VERSION,
        schema=index_schema(source.modality),
        settings={"kind": settings["kind"], "source_version": source.version, **source.settings},
    )
    groups = _grouped(source, settings["kind"], unit_bytes)
    return StageWork(
        title=f"ingest {name}",
        folders=(StageDir(store=store, source=name, config=config),),
        units=[Unit(inputs=tuple(f.reference for f in group), payload={"files": group}) for group in groups],
        make_worker=partial(IngestWorker, name, dict(settings)),
    )


def _grouped(source: Source, kind: str, unit_bytes: int) -> list[list[RawFile]]:
    """Group a source's files: a shard or table is a unit, of loose pictures (some 100 KB each) a few hundred are.

    Of films only the header is read, however large they are: a thousand go together.
    """
    if source.modality == "video":
        films = [_Counted(path=file.path, size=1, file=file) for file in source.files()]
        groups = group_files(films, max_bytes=4 * _FILMS, mean_files=_FILMS)
        return [[one.file for one in group] for group in groups]
    return group_files(source.files(), max_bytes=unit_bytes, mean_files=1 if kind in ALONE else 256)


@dataclass(frozen=True, slots=True)
class _Counted:
    """A film as `group_files` sees it: each is as large as any other."""

    path: str
    size: int
    file: RawFile


class IngestWorker:
    """Indexes a unit's files one after the other; packs the samples if the source asks for it.

    What a takedown list speaks of never gets in. The lists are no part of a unit's identity: a list must not make all
    raw data be read again, and what was ingested before a list is left out by the selection.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._source: Source = open_source(name, settings)
        self._takedowns: Takedowns | Literal["unread"] | None = "unread"

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        (target,) = job.targets
        store = target.folder.store
        journal = None
        if isinstance(self._source, FetchingSource):
            if target.attempt and (before := _settled(target, job.unit)) is not None:
                return JobResult(commits=(before,))
            journal = Journal(store, target.folder.at(f"{JOURNAL}/{job.unit.name}.{target.attempt}"))
        with ExitStack() as stack:
            found = stack.enter_context(closing(self._rows(job, target, journal)))
            allowed = self._allowed(found, store, job.unit.name)
            rows: Iterable[IndexRow] = _unique(journal.kept(allowed) if journal else allowed)
            archive = None
            if self._source.packs:
                path = stack.enter_context(store.staging(target.folder.path))
                with ArchiveWriter(path) as writer:
                    rows = [_packed(writer, row) for row in rows]
                archive = StagedArchive(path=path, bytes=writer.bytes, sha256=writer.sha256)
            output = replace(index_output(rows, index_columns(self._source.modality)), archive=archive)
            read_s = time.perf_counter() - started
            commit = publish(job, target, output)
        if journal is not None:
            journal.remove()
        return JobResult(commits=(commit,), seconds={"read": read_s, "write": time.perf_counter() - started - read_s})

    def close(self) -> None:
        """Nothing to end: what a source started ends with it."""

    def _rows(self, job: Job, target: Target, journal: Journal | None) -> Generator[IndexRow]:
        files: Sequence[RawFile] = job.unit.payload["files"]
        if journal is not None and isinstance(self._source, FetchingSource):
            context = FetchContext(known=_known(journal, target, job.unit), is_unwanted=self._is_unwanted(target))
            rows = self._source.fetch(files, context)
        else:
            threads = _HEADERS_AT_ONCE if self._source.modality == "video" else 1
            found = ordered_map(self._indexed, files, threads=threads, window=4 * threads)
            rows = chain.from_iterable(found)
        for row in rows:
            yield _storable(row)

    def _indexed(self, file: RawFile) -> Iterable[IndexRow]:
        rows = self._source.index(file)
        return list(rows) if self._source.modality == "video" else rows

    def _lists(self, store: Store) -> Takedowns | None:
        if self._takedowns == "unread":
            self._takedowns = read_takedowns(store)
        return self._takedowns

    def _is_unwanted(self, target: Target) -> Callable[[str, str], bool]:
        lists = self._lists(target.folder.store)
        return lambda key, metadata: lists is not None and bool(lists.of_sample(self._name, key, None, metadata))

    def _allowed(self, rows: Iterator[IndexRow], store: Store, unit: str) -> Iterator[IndexRow]:
        lists = self._lists(store)
        if lists is None:
            yield from rows
            return
        for number, row in enumerate(rows):
            pictures = [picture.sha256 for picture in row.pictures]
            hit = lists.of_sample(self._name, row.key, row.sha256, row.metadata, pictures)
            yield taken_down_row(unit, number) if hit else row


def index_output(rows: Iterable[IndexRow], columns: Mapping[str, Any] = INDEX_COLUMNS) -> UnitOutput:
    """Turn index rows into a table, counts and digests."""
    return table_output(pl.DataFrame([index_record(row, columns) for row in rows], schema=columns, orient="row"))


def table_output(table: pl.DataFrame) -> UnitOutput:
    """Count an index and take its digests (`content`: keys and bytes alone; `rows`: all but the place)."""
    good = table.filter(pl.col("fail_reason").is_null())
    failed = Counter(table["fail_reason"].drop_nulls().to_list())
    described = good.select("key", "sha256", "caption", "metadata")
    return UnitOutput(
        rows=table,
        counts=Counts(rows_in=table.height, kept=good.height, out=good.height, failed=dict(sorted(failed.items()))),
        digests={
            "content": digest_of_rows(("key", "sha256"), good.select("key", "sha256").iter_rows()),
            "rows": digest_of_rows(described.columns, described.iter_rows()),
        },
        totals={"bytes": int(raw_bytes(good).sum()), **_seconds(good)},
    )


def _seconds(good: pl.DataFrame) -> dict[str, int]:
    """Return the whole seconds of film; nothing where an index has no durations."""
    return {"seconds": round(good["seconds"].sum())} if "seconds" in good.columns else {}


def taken_down_row(unit: str, number: int) -> IndexRow:
    """Return what stands in an index for a taken-down sample: its place in the unit, and nothing else of it."""
    return IndexRow(key=f"taken-down-{unit[-16:]}-{number}", path="", error=SampleError(REASON, "was taken down"))


def index_record(row: IndexRow, columns: Mapping[str, Any] = INDEX_COLUMNS) -> tuple[Any, ...]:
    """Return a row of the index's table."""
    place = (row.key, row.path, row.payload is not None, row.offset, row.length, row.extension)
    failure: tuple[Any, ...] = (None, None, None, None)
    if row.error is not None:
        failure = ("ingest", row.error.reason, row.error.message, row.error.transient)
    more: tuple[Any, ...] = (row.seconds,) if "seconds" in columns else ()
    more += ([picture.record for picture in row.pictures],) if "pictures" in columns else ()
    return (*place, row.sha256, row.caption, row.metadata, *failure, *more)


def _settled(target: Target, unit: Unit) -> Commit | None:
    """Return the record of the attempt before, if none of its failures may pass: nearly every unit has a 404."""
    commit = target.folder.read_commit(unit.name, target.attempt - 1)
    failures = target.folder.read_rows(commit, ["fail_transient"])
    return None if failures["fail_transient"].any() else commit


def _known(journal: Journal, target: Target, unit: Unit) -> Iterator[IndexRow | None]:
    """Yield what is known of a unit's rows: what this attempt kept before it was killed, then what the last one has."""
    count = 0
    for row in journal.known():
        count += 1
        yield row
    if target.attempt:
        commit = target.folder.read_commit(unit.name, target.attempt - 1)
        yield from earlier_rows(target.folder, commit, count)


def _storable(row: IndexRow) -> IndexRow:
    """Escape what no UTF-8 file can hold: lone surrogates, which JSON lets through."""
    caption = None if row.caption is None else _escaped(row.caption)
    return replace(row, key=_escaped(row.key), caption=caption, metadata=_escaped(row.metadata))


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _unique(rows: Iterable[IndexRow]) -> Iterator[IndexRow]:
    """Turn the second and later samples with one key into failures: two samples cannot share annotations."""
    seen: set[str] = set()
    for row in rows:
        if row.error is None and row.key in seen:
            yield IndexRow(
                key=row.key, path=row.path, error=SampleError("duplicate_key", "an earlier sample has this key")
            )
        else:
            seen.add(row.key)
            yield row


def _packed(writer: ArchiveWriter, row: IndexRow) -> IndexRow:
    if row.payload is None:
        return row
    if row.pictures:
        return _packed_document(writer, row, row.payload)
    described = json.dumps({**json.loads(row.metadata), "key": row.key}).encode()
    members = {"json": described, row.extension: row.payload}  # the payload of a document is its JSON
    if row.caption is not None:
        members["txt"] = row.caption.encode()
    placed = writer.add(row.key, members)[row.extension]
    return replace(row, offset=placed.offset, length=placed.length, payload=b"")  # written: no need to hold it


def _packed_document(writer: ArchiveWriter, row: IndexRow, payload: bytes) -> IndexRow:
    """Pack a document's JSON and its pictures, `<key>.<number>.<extension>`."""
    names = [f"{number}.{picture.extension}" for number, picture in enumerate(row.pictures)]
    members = {name: picture.payload or b"" for name, picture in zip(names, row.pictures, strict=True)}
    placed = writer.add(row.key, {row.extension: payload, **members})
    pictures = tuple(
        replace(picture, offset=placed[name].offset, length=placed[name].length, payload=None)
        for name, picture in zip(names, row.pictures, strict=True)
    )
    json_at = placed[row.extension]
    return replace(row, offset=json_at.offset, length=json_at.length, payload=b"", pictures=pictures)
