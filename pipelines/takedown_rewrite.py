"""Taking samples out of what was written: packed archives and indexes without them, and no table that names them.

An ingested unit gets a further attempt, in which a taken-down sample is a failed row without key, bytes, caption or
metadata; its archive is written again without the sample, in the same order. Everything that was derived from such a
sample is removed, and the next run computes it again for the touched units only: that is dear (their scores and tokens
are computed again) and leaves nothing to trust but the ordinary chain.

Every removal goes description first, then records, then files, and what tells which samples are meant (the earlier
attempts of ingest) goes last, so a rewrite that was killed is finished by doing it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.archive import ArchiveWriter, Member, escape_key, iterate_members, split_name
from tokenmill.manifests.gc_delete import delete_snapshots_naming, delete_units
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir, parse_table, read_table
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import Takedowns
from tokenmill.pipelines.answers import is_paid_for
from tokenmill.pipelines.checked_recipe import MODALITIES
from tokenmill.pipelines.earlier_verdicts import keep_verdicts_without
from tokenmill.pipelines.ingest import index_record, table_output, taken_down_row
from tokenmill.pipelines.jobs import Job, StagedArchive, Target, Unit, publish
from tokenmill.pipelines.sources.journal import FOLDER as JOURNAL
from tokenmill.pipelines.sources.source import PICTURE, columns_of_index
from tokenmill.pipelines.takedown_answers import forget_journaled, keep_answers_without, names_answer_of
from tokenmill.pipelines.takedown_find import Name, all_commits, stage_dirs
from tokenmill.pipelines.takedown_foreign import is_foreign

_DERIVED = (
    "tokenize",
    "choose",
    "caption",
    "select",
    "duplicates",
    "compare",
    "decontaminate",
    "takedown",
    "score",
    "split",
)  # last made, first removed


@dataclass(kw_only=True)
class Rewritten:
    """What a rewrite did: `answers` are records of paid answers, written again; `plans` can no longer be trained on."""

    archives: list[str] = field(default_factory=list)
    indexes: int = 0
    records: int = 0
    answers: int = 0
    plans: list[str] = field(default_factory=list)
    reports: int = 0


def rewrite(store: Store, lists: Takedowns, names: set[Name]) -> Rewritten:
    """Leave nothing under a root that holds a taken-down sample, or names one of `names`, but the lists themselves."""
    done = Rewritten()
    ingests = stage_dirs(store, "ingest")
    for folder in ingests:
        for commit in _newest(all_commits(folder)):
            _redact(folder, commit, lists, done)
        _forget_journals(folder)
    folders = [folder for stage in _DERIVED for folder in stage_dirs(store, stage)]
    paid = [folder for folder in folders if is_paid_for(store, folder.path)]
    foreign = [folder for folder in folders if is_foreign(folder)]  # their newest indexes were written without them
    folders = [folder for folder in folders if folder not in (*paid, *foreign)]
    condemned, outdated = (
        [(folder, *_parted(folder, partial(_names_any, folder, names=names))) for folder in group]
        for group in (folders, foreign)
    )
    reading = [*condemned, *outdated]
    archives = {folder.at(c.data.name) for folder, doomed, _ in reading for c in doomed if c.file("data")}
    _remove_plans(store, archives, names, done)
    for folder, doomed, others in condemned:
        _remove(folder, doomed, others, done)
    for folder in paid:
        _rewrite_answers(folder, names, done)
    for folder, doomed, others in outdated:
        _remove(folder, doomed, others, done)
    for folder in ingests:
        _remove(folder, *_parted(folder, partial(_is_listed, folder, lists=lists)), done)
    if names or done.indexes:
        _remove_reports(store, done)
    return done


def redacted(rows: pl.DataFrame, mask: pl.Series, unit: str) -> pl.DataFrame:
    """Return an index in which the rows under `mask` say only that a sample was taken down."""
    columns = columns_of_index(rows.columns)
    blank = [index_record(taken_down_row(unit, number), columns) for number in range(rows.height)]
    blanks = pl.DataFrame(blank, schema=columns, orient="row")
    return rows.select(pl.when(mask).then(blanks[name]).otherwise(pl.col(name)).alias(name) for name in rows.columns)


def _redact(folder: StageDir, commit: Commit, lists: Takedowns, done: Rewritten) -> None:
    """Write a unit's next attempt without the samples; nothing happens where there is none."""
    rows = folder.read_rows(commit)
    mask = lists.mask(rows, folder.source)
    if not mask.any():
        return
    unit = Unit(inputs=commit.inputs)
    predecessor = sha256_hex(commit.to_bytes())
    target = Target(folder=folder, attempt=commit.attempt + 1, predecessor=predecessor)
    job = Job(unit=unit, targets=(target,))
    table = redacted(rows, mask, unit.name)
    data = commit.file("data")
    if data is None:
        publish(job, target, table_output(table))
    else:
        with folder.store.staging(folder.path) as path:
            archive, table = _repacked(folder.store, folder.at(data.name), table, path)
            publish(job, target, replace(table_output(table), archive=archive))
        done.archives.append(folder.at(data.name))
    done.indexes += 1
    fault_point("takedown:after-rewrite")


def _forget_journals(folder: StageDir) -> None:
    """Remove what units that were never finished have fetched: a run that goes on fetches it again."""
    folder.store.delete_many([entry.path for entry in folder.store.files(folder.at(JOURNAL))])


def _repacked(store: Store, archive: str, table: pl.DataFrame, path: Path) -> tuple[StagedArchive, pl.DataFrame]:
    """Copy an archive without the samples the table no longer has; returns it, and the table with their new places."""
    keys = {escape_key(key) for key, packed in table.select("key", "packed").iter_rows() if packed}
    places: dict[str, Member] = {}
    with ArchiveWriter(path) as writer, store.open(archive) as stream:
        for member, data in iterate_members(stream):
            if split_name(member.name)[0] in keys:
                places[member.name] = writer.add_member(member.name, data)
    rows = list(table.iter_rows(named=True))
    offsets = [_offset(places, row["key"], row, row["extension"]) for row in rows]
    moved = table.with_columns(pl.Series("offset", offsets, dtype=pl.Int64))
    if "pictures" in table.columns:
        moved = moved.with_columns(pl.Series("pictures", [_moved(places, row) for row in rows], pl.List(PICTURE)))
    return StagedArchive(path=path, bytes=writer.bytes, sha256=writer.sha256), moved


def _moved(places: Mapping[str, Member], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pictures of a document at their new places."""
    return [
        picture | {"offset": _offset(places, row["key"], picture, f"{number}.{picture['extension']}")}
        for number, picture in enumerate(row["pictures"] or ())
    ]


def _offset(places: Mapping[str, Member], key: str, old: Mapping[str, Any], extension: str) -> int:
    member = places.get(f"{escape_key(key)}.{extension}")
    return int(old["offset"]) if member is None else member.offset


def _newest(commits: Iterable[Commit]) -> list[Commit]:
    return list({commit.unit: commit for commit in commits}.values())  # in order of attempt: the last one stays


def _parted(folder: StageDir, is_doomed: Callable[[Commit], bool]) -> tuple[list[Commit], list[Commit]]:
    """Split a folder's records into those to remove and the others."""
    doomed: list[Commit] = []
    others: list[Commit] = []
    for commit in all_commits(folder):
        (doomed if is_doomed(commit) else others).append(commit)
    return doomed, others


def _is_listed(folder: StageDir, commit: Commit, lists: Takedowns) -> bool:
    """Say whether an index holds a taken-down sample: only attempts that were written again since do."""
    return bool(lists.mask(folder.read_rows(commit), folder.source).any())


def _names_any(folder: StageDir, commit: Commit, names: set[Name]) -> bool:
    """Say whether a unit's tables name one of some samples, as a row or as what a row is a copy of."""
    for entry in commit.files:
        if not entry.name.endswith(".parquet"):
            continue
        rows = parse_table(folder.store.read_bytes(folder.at(entry.name)))
        if "key" in rows.columns:
            sources = rows["source"] if "source" in rows.columns else [folder.source] * rows.height
            if any(name in names for name in zip(sources, rows["key"], strict=True)):
                return True
        for column in ("duplicate_of", "of"):  # `of`: the verdicts of stage compare
            if column in rows.columns and any(_is_one_of(names, name) for name in rows[column].drop_nulls().unique()):
                return True
    return False


def _is_one_of(names: set[Name], copied: str) -> bool:
    """Say whether what a row is a copy of is one of some samples: `source/key`, `source/shard/key` or `set/key`."""
    source, _, rest = copied.partition("/")
    parts = rest.split("/")
    sources = (source, *(f"evaluation.{modality}.{source}" for modality in MODALITIES))
    return any((one, "/".join(parts[n:])) in names for one in sources for n in range(len(parts)))


def _remove_plans(store: Store, archives: set[str], names: set[Name], done: Rewritten) -> None:
    """Remove every plan that reads a removed archive or names a sample, and what a killed removal left of one.

    Its description goes first, and last of all what says that the folder is a plan's: so it is found again.
    """
    for folder in stage_dirs(store, "plans"):
        commits = all_commits(folder)
        is_whole = store.exists(folder.at("plan.json"))
        reads = any(reference.name in archives for commit in commits for reference in commit.inputs)
        reads = reads or _takes_over(folder, archives)
        if is_whole and not reads and not any(_names_any(folder, commit, names) for commit in commits):
            continue
        listing = [entry.path for entry in store.files(folder.path)]
        ranks = {"plan.json": 0, "snapshots": 1, "config.json": 3}
        for path in sorted(listing, key=lambda path: (ranks.get(path[len(folder.path) + 1 :].split("/")[0], 2), path)):
            store.delete(path)
            fault_point("takedown:after-delete")
        done.plans.append(folder.path)


def _takes_over(folder: StageDir, archives: set[str]) -> bool:
    """Say whether a plan that continues another may read archives for what it took over: its inputs don't say."""
    name = folder.at("shards.parquet")
    if "continues" not in folder.config.settings or not folder.store.exists(name):
        return False
    return not archives.isdisjoint(read_table(folder.store, name, ["shard"])["shard"])


def _remove(folder: StageDir, doomed: list[Commit], others: list[Commit], done: Rewritten) -> None:
    if doomed:
        records = {(commit.unit, commit.attempt) for commit in doomed}
        if folder.config.stage == "duplicates":
            keep_verdicts_without(folder, records)
        delete_snapshots_naming(folder, records)
        delete_units(folder, doomed, others)
        done.records += len(doomed)
        fault_point("takedown:after-delete")


def _rewrite_answers(folder: StageDir, names: set[Name], done: Rewritten) -> None:
    """Take samples out of answers that were paid for, and leave the others in records that say nothing of them."""
    doomed, _ = _parted(folder, partial(names_answer_of, folder, names=names))
    done.answers += keep_answers_without(folder, doomed, names)
    forget_journaled(folder, names)
    named = {(commit.unit, commit.attempt) for commit in doomed}
    written = [commit for commit in all_commits(folder) if (commit.unit, commit.attempt) not in named]
    _remove(folder, doomed, written, done)


def _remove_reports(store: Store, done: Rewritten) -> None:
    """Remove the reports: they carry pictures."""
    for entry in store.files("reports"):
        store.delete(entry.path)
        done.reports += 1
