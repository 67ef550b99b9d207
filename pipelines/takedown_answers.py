"""Taking samples out of answers that were paid for: their answers go, those of all others stay and are not asked again.

A unit's table is written again without them, as a new record; a unit that was named by a taken-down file gets the name
of one that stays, by which later units find its answers. Journals are written again, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answer_journal import FOLDER as JOURNAL
from tokenmill.pipelines.answer_journal import journal_line, journal_rows
from tokenmill.pipelines.caption_worker import answers_digest, counts_of
from tokenmill.pipelines.jobs import Job, Target, Unit, UnitOutput, publish

Name = tuple[str, str]  # source and key


def keep_answers_without(folder: StageDir, doomed: Sequence[Commit], names: set[Name]) -> int:
    """Publish what some units know of samples that are not in `names`; the units themselves are the caller's to remove.

    Returns how many records were written.
    """
    written = 0
    for commit in {one.unit: one for one in doomed}.values():  # in order of attempt: the last one stays
        rows = folder.read_rows(commit)
        others = rows.filter(~_named(folder.source, rows, names))
        inputs = _renamed(commit.inputs, folder.source, names, others)
        is_new = inputs != commit.inputs
        target = Target(folder=folder) if is_new else _next(folder, commit)
        output = UnitOutput(
            rows=others,
            counts=counts_of(others),
            digests={"answers": answers_digest(others)},
            totals=dict(commit.totals),
        )
        publish(Job(unit=Unit(inputs=inputs), targets=(target,)), target, output)
        written += 1
        fault_point("takedown:after-answers")
    return written


def forget_journaled(folder: StageDir, names: set[Name]) -> None:
    """Write the journals of a folder again without some samples."""
    store = folder.store
    for entry in store.files(folder.at(JOURNAL)):
        rows = list(journal_rows(store.read_bytes(entry.path)))
        others = [row for row in rows if (folder.source, row["key"]) not in names]
        if others and len(others) < len(rows):
            store.put(entry.path, b"".join(map(journal_line, others)))
        elif len(others) < len(rows):
            store.delete_many([entry.path])


def names_answer_of(folder: StageDir, commit: Commit, names: set[Name]) -> bool:
    """Say whether a record of answers speaks of a sample, in its table or as the file that it is named by."""
    files = any((folder.source, reference.name) in names for reference in commit.inputs)
    return files or bool(_named(folder.source, folder.read_rows(commit, ["key"]), names).any())


def _named(source: str, rows: pl.DataFrame, names: set[Name]) -> pl.Series:
    return pl.Series([(source, key) in names for key in rows["key"]], dtype=pl.Boolean)


def _next(folder: StageDir, commit: Commit) -> Target:
    return Target(folder=folder, attempt=commit.attempt + 1, predecessor=sha256_hex(commit.to_bytes()))


def _renamed(inputs: tuple[InputRef, ...], source: str, names: set[Name], others: pl.DataFrame) -> tuple[InputRef, ...]:
    """Return a unit's inputs, the names of taken-down files replaced by those of the first and the last that stays."""
    keys = others["key"].sort()
    stays: Mapping[int, str] = {0: keys[0], len(inputs) - 1: keys[-1]} if len(keys) else {}
    return tuple(
        replace(one, name=stays.get(place, "taken-down"), digest=digest_of([one.digest, "taken down"]))
        if (source, one.name) in names
        else one
        for place, one in enumerate(inputs)
    )
