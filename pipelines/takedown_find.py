"""Where under a root the samples of a takedown list are: in which indexes, annotations and token archives.

Looks at what lies on disk, under whatever settings it was written, not at what a recipe would make now. Every index is
read twice at most (the second time for exact copies of what the first found); pixels are never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir, stage_dir_at
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import Identifier, Takedowns

_THREADS = 8
Name = tuple[str, str]  # source and key


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A taken-down sample in an ingested unit; `path` is the raw file that holds it too (empty: not known any more)."""

    source: str
    key: str
    path: str
    sha256: str
    is_film: bool
    identifiers: tuple[Identifier, ...]


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Rows of a token archive's index that belong to taken-down samples."""

    source: str
    archive: str
    rows: tuple[int, ...]


@dataclass(kw_only=True)
class Found:
    """Everything a list speaks of under one root.

    Attributes:
        names: source and key of every sample, clips and copies included.
        answered: the identifiers that led to a sample.
    """

    hits: list[Hit] = field(default_factory=list)
    names: set[Name] = field(default_factory=set)
    answered: set[Identifier] = field(default_factory=set)
    tokenized: list[Tokenized] = field(default_factory=list)

    @property
    def derived(self) -> list[Identifier]:
        """What the found samples are known by besides: their bytes, and a film's key (its clips carry no such hash)."""
        digests = {Identifier(kind="sha256", value=hit.sha256) for hit in self.hits if hit.sha256}
        films = {Identifier(kind="key", value=f"{hit.source}/{hit.key}") for hit in self.hits if hit.is_film}
        return sorted(digests | films)


def find(store: Store, asked: Takedowns) -> Found:
    """Find the samples that some identifiers speak of, and their exact copies."""
    found = Found()
    for folder, _, rows in tables_of(store, "score") if asked.has_hashes_of_looks else ():
        if "phash" in rows.columns:
            _note_names(found, folder, rows, asked.matches(rows, folder.source))
    _find_indexed(store, found, widened(asked, found))
    if found.derived:
        _find_indexed(store, found, widened(asked, found))
    wider = widened(asked, found)
    for stage in ("split", "tokenize"):
        for folder, commit, rows in tables_of(store, stage):
            matches = wider.matches(rows, folder.source)
            _note_names(found, folder, rows, matches)
            places = tuple(number for number, match in enumerate(matches) if match)
            if places and stage == "tokenize":
                archive = folder.at(commit.data.name)
                found.tokenized.append(Tokenized(source=folder.source, archive=archive, rows=places))
        wider = widened(asked, found)
    found.answered &= asked.identifiers
    return found


def tables_of(store: Store, stage: str) -> Iterator[tuple[StageDir, Commit, pl.DataFrame]]:
    """Yield the table of every record of every folder of a stage, of whatever settings and attempt."""
    for folder in stage_dirs(store, stage):
        with ThreadPoolExecutor(_THREADS) as pool:
            commits = all_commits(folder)
            for commit, rows in zip(commits, pool.map(folder.read_rows, commits), strict=True):
                yield folder, commit, rows


def stage_dirs(store: Store, stage: str) -> list[StageDir]:
    """Open every folder of a stage (`plans`: of every plan) that says what it is."""
    found = []
    for source in store.folders(stage):
        for name in store.folders(f"{stage}/{source}"):
            path = f"{stage}/{source}/{name}"
            if store.exists(f"{path}/config.json"):
                found.append(stage_dir_at(store, path))
    return found


def all_commits(folder: StageDir) -> list[Commit]:
    """Read every record of a folder, earlier attempts included, in order of unit and attempt."""
    wanted = sorted(record_keys(entry.path for entry in folder.store.files(folder.at("commits"))))
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda key: folder.read_commit(*key), wanted))


def record_keys(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield (unit, attempt) of every path that is a commit record's."""
    for path in paths:
        unit, _, attempt = path.rsplit("/", 1)[-1].removesuffix(".json").rpartition(".")
        if unit and attempt.isdigit():
            yield unit, int(attempt)


def widened(asked: Takedowns, found: Found) -> Takedowns:
    """Widen a list by what was found so far: names of samples, and digests for their copies."""
    names = {Identifier(kind="key", value=f"{source}/{key}") for source, key in found.names}
    return replace(asked, identifiers=asked.identifiers | names | set(found.derived))


def raw_files(hits: Sequence[Hit]) -> list[dict[str, object]]:
    """Name the raw files that hold taken-down samples still: they are the user's, and are only read."""
    by_file: dict[tuple[str, str], set[str]] = {}
    for hit in hits:
        if hit.path:
            by_file.setdefault((hit.source, hit.path), set()).add(hit.key)
    return [{"source": source, "file": path, "keys": sorted(keys)} for (source, path), keys in sorted(by_file.items())]


def _find_indexed(store: Store, found: Found, wanted: Takedowns) -> None:
    found.hits.clear()
    for folder, commit, rows in tables_of(store, "ingest"):
        matches = wanted.matches(rows, folder.source)
        _note_names(found, folder, rows, matches)
        for number, identifiers in enumerate(matches):
            if identifiers:
                row = rows.row(number, named=True)
                if row["sha256"] is None:
                    raise ManifestError(f"{folder.at(commit.rows.name)}: a row without a digest")
                film = folder.config.settings.get("kind") == "videos"
                found.hits.append(
                    Hit(
                        source=folder.source,
                        key=row["key"],
                        path=row["path"],
                        sha256=row["sha256"] if row["fail_reason"] is None else "",
                        is_film=film,
                        identifiers=tuple(identifiers),
                    )
                )


def _note_names(found: Found, folder: StageDir, rows: pl.DataFrame, matches: Sequence[Sequence[Identifier]]) -> None:
    for key, identifiers in zip(rows["key"], matches, strict=True):
        if identifiers:
            found.names.add((folder.source, key))
            found.answered.update(identifiers)
