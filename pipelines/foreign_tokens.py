"""Sources that are tokenized already: an index is made for shards of others, and a stage's folder is used as it is.

Nothing is copied. The archives are read once, where they lie, to index and check them (and to take their digests); what
is written below the root is a tokenize stage's folder as always, whose records point at the archives outside of it.
"""

from __future__ import annotations

import os
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import polars as pl

from tokenmill.errors import RecipeError, SampleError
from tokenmill.faults import fault_point
from tokenmill.manifests.archive import Member, iterate_members, split_name
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef
from tokenmill.manifests.snapshots import Snapshot, read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageConfig, StageDir, stage_dir_at, table_bytes
from tokenmill.manifests.storage import Store, Stored
from tokenmill.manifests.takedowns import REASON, read_takedowns
from tokenmill.manifests.verify_files import HashingReader
from tokenmill.pipelines.foreign_samples import COLUMNS, failed_row, foreign_row
from tokenmill.pipelines.ingest import taken_down_row
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.settings_tokens import TokenShards
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

VERSION = 1
SCHEMA = 1
_THREADS = 16
_END_BYTES = 2**16


def finished_tokens(store: Store, source: str, settings: TokenShards) -> Snapshot | None:
    """Return the snapshot of a tokenize stage's folder, under a source's name; None where none lies at the URL.

    Raises RecipeError for a folder of another stage, or with several snapshots of which none is named.
    """
    place = _placed(store, settings.url)
    if not store.exists(f"{place}/config.json"):
        return None
    folder, where = stage_dir_at(store, place), f"sources.{source}"
    if folder.config.stage != "tokenize":
        raise RecipeError(f"{where}.url: {settings.url} is a folder of the stage {folder.config.stage}, not of tokens")
    names = [name for name in snapshot_names(folder) if name.startswith(settings.snapshot[:16])]
    if len(names) != 1:
        there = f"has {len(names)} snapshots ({', '.join(names[:4]) or 'none'})"
        raise RecipeError(f"{where}.snapshot: {settings.url} {there}; give the digits of one")
    found = read_snapshot(folder, names[0])
    if not found.digest.startswith(settings.snapshot):
        raise RecipeError(f"{where}.snapshot: {settings.url} has the snapshot {found.digest}, another one")
    if folder.source != source:
        raise RecipeError(f"{where}: {settings.url} holds the source {folder.source}; give it that name here too")
    return found


def index_work(
    store: Store, source: str, settings: TokenShards, vocabulary: Mapping[str, Any], vision: Mapping[str, Any] | None
) -> StageWork:
    """Describe the indexing of a folder of shards: a unit is one archive.

    Raises RecipeError where no archive lies there.
    """
    built = build_vocabulary(vocabulary)
    place = _placed(store, settings.url)
    asked = settings.model_dump(mode="json", exclude={"kind", "snapshot", "url", "licence"}) | {"archives": place}
    told = {"vocabulary": built.spec, "vision": dict(vision) if vision else None, "licence": settings.licence}
    config = StageConfig(
        stage="tokenize",
        version=VERSION,
        schema=SCHEMA,
        settings={**told, "foreign": asked},
        fingerprints={"vocabulary": built.fingerprint},
        about={"text_ids": built.text.size, "codes": built.codebook_size},
    )
    archives = [entry for entry in store.files(place) if entry.path.endswith(".tar")]
    if not archives:
        raise RecipeError(f"sources.{source}.url: {settings.url} holds no .tar and no folder of a tokenize stage")
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(partial(_mark, store), archives))
    units = [
        Unit(inputs=(InputRef(name=entry.path.removeprefix(f"{place}/"), digest=digest),), payload={"archive": entry})
        for entry, digest in zip(archives, digests, strict=True)
    ]
    return StageWork(
        title=f"index {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=units,
        make_worker=partial(IndexWorker, settings, built.spec),
    )


def _placed(store: Store, url: str) -> str:
    """Return a URL as a path of the store where it lies below its root, so that both can be moved together."""
    whole, root = _whole(url), _whole(store.url)
    return whole.removeprefix(f"{root}/") if whole.startswith(f"{root}/") else whole


def _whole(url: str) -> str:
    """Return a URL or local path as a URL; one with `..` is followed: `ours/../theirs` is not below `ours`."""
    if "://" in url:
        return url.rstrip("/")
    return f"file://{os.path.realpath(url) if '..' in url.split('/') else os.path.normpath(url)}"


def _mark(store: Store, entry: Stored) -> str:
    """Return what tells an archive from another without reading it: name, size, both ends.

    A change in the middle that leaves the size is found by `verify --deep`, which compares the digest.
    """
    length = min(entry.size, _END_BYTES)
    ends = store.read_ranges(entry.path, [(0, length), (entry.size - length, length)])
    return digest_of([entry.size, *(sha256_hex(end) for end in ends)])


class IndexWorker:
    """Indexes one archive after the other."""

    def __init__(self, settings: TokenShards, vocabulary: Mapping[str, Any]) -> None:
        self._settings, self._vocabulary = settings, build_vocabulary(vocabulary)

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        (target,) = job.targets
        entry: Stored = job.unit.payload["archive"]
        rows, sha256 = _indexed(target.folder.store, entry, self._settings, self._vocabulary)
        table = pl.DataFrame(rows, schema=COLUMNS, orient="row")
        lists = read_takedowns(target.folder.store)
        if lists is not None:
            table = without(table, lists.mask(table, target.folder.source), job.unit.name)
        name = entry.path if "://" in entry.path else f"/{entry.path}"
        data = FileEntry(name=name, role="data", bytes=entry.size, sha256=sha256)
        fault_point("commit:before-data")
        commit = publish_index(job, data, table)
        return JobResult(commits=(commit,), seconds={"read": time.perf_counter() - started})


def _indexed(
    store: Store, entry: Stored, settings: TokenShards, vocabulary: Vocabulary
) -> tuple[list[tuple[Any, ...]], str]:
    """Read an archive front to back; returns the rows of its index, and its sha256."""
    rows = []
    with store.open(entry.path) as stream:
        reader: Any = HashingReader(stream)
        try:
            for key, members in _groups(reader):
                rows.append(foreign_row(key, members, settings, vocabulary))
        except tarfile.TarError as error:
            what = f"not a whole tar from here on ({' '.join(str(error).split())})"
            rows.append(failed_row(entry.path.rsplit("/", 1)[-1], SampleError("cut_off", what)))
        return rows, reader.finish()


def _groups(stream: Any) -> Iterator[tuple[str, dict[str, tuple[Member, bytes]]]]:
    """Yield neighbouring members of one key, by extension (webdataset's rule: from the first dot on)."""
    key, members = "", dict[str, tuple[Member, bytes]]()
    for member, data in iterate_members(stream):
        name, extension = split_name(member.name)
        if name != key and members:
            yield key, members
            members = {}
        key = name
        members[extension] = (member, data)
    if members:
        yield key, members


def without(table: pl.DataFrame, mask: pl.Series, unit: str) -> pl.DataFrame:
    """Return an index in which the rows under a mask say only that a sample was taken down."""
    blank = [failed_row(taken_down_row(unit, n).key, SampleError(REASON, "was taken down")) for n in range(len(table))]
    blanks = pl.DataFrame(blank, schema=COLUMNS, orient="row")
    return table.select(pl.when(mask).then(blanks[name]).otherwise(pl.col(name)).alias(name) for name in COLUMNS)


def publish_index(job: Job, data: FileEntry, frame: pl.DataFrame) -> Commit:
    """Publish the index of an archive, which stays where it is, then its record."""
    (target,) = job.targets
    folder = target.folder
    failed = Counter(frame["fail_reason"].drop_nulls())
    kept = len(frame) - failed.total()
    table = folder.publish_bytes(job.unit.name, ".parquet", table_bytes(frame, SCHEMA), "rows")
    commit = Commit(
        stage="tokenize",
        source=folder.source,
        config=folder.config.digest,
        unit=job.unit.name,
        inputs=job.unit.inputs,
        counts=Counts(rows_in=len(frame), kept=kept, out=kept, failed=dict(sorted(failed.items()))),
        files=(data, table),
        attempt=target.attempt,
        predecessor=target.predecessor,
        totals={
            "text_ids": int(frame["num_text"].sum() or 0),
            "codes": int(frame["num_codes"].sum() or 0),
            "bytes": data.bytes,
        },
    )
    return folder.publish_commit(commit)
