"""Stage duplicates: the verdicts of stage `compare`, slice by slice.

A unit is a slice and what was decided about it, so a slice whose verdicts stay the same stays untouched: three shards
appended to twenty decide over all, and write three units and those of the slices in which somebody's fate changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import polars as pl

from tokenmill.filters.rules import Rules
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.compare import DuplicateSettings, slice_references
from tokenmill.pipelines.compare_read import passing
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.scored import Scored
from tokenmill.pipelines.verdicts import Decision

VERSION = 1
SCHEMA = 1


def duplicates_folder(store: Store, modality: str, settings: DuplicateSettings) -> StageDir:
    """Return where the verdicts of a modality lie."""
    return StageDir(store=store, source=modality, config=settings.config("duplicates", VERSION, SCHEMA))


def duplicates_work(
    folder: StageDir, scored: Sequence[Scored], rules: Mapping[str, Rules], compared: Snapshot
) -> StageWork:
    """Describe the writing of a decision's verdicts; one unit a slice."""
    (record,) = compared.commits
    decision = Decision(folder=compared.folder, commit=record)
    units = []
    for part, about in zip(scored, decision.parts().iter_rows(named=True), strict=True):
        verdicts = InputRef(name="verdicts", digest=about["verdicts"])
        payload = {"scored": part, "part": about["part"], "table": about["table"]}
        units.append(Unit(inputs=(*slice_references(part), verdicts), payload=payload))
    return StageWork(
        title=f"duplicates {folder.source}",
        folders=(folder,),
        units=units,
        make_worker=partial(DuplicatesWorker, decision, rules),
        parents={"compare": compared.digest, **compared.parents},
    )


class DuplicatesWorker:
    """Writes what was decided about one slice after the other."""

    def __init__(self, decision: Decision, rules: Mapping[str, Rules]) -> None:
        self._decision, self._rules = decision, rules

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        payload = job.unit.payload
        scored: Scored = payload["scored"]
        table = passing(scored, self._rules, frozenset())
        verdicts = self._decision.of_part(payload["part"], payload["table"])
        found = table.join(verdicts, on="row", how="left", maintain_order="left")
        rows = found.select(
            pl.lit(scored.piece.source).alias("source"),
            "key",
            pl.col("reason").alias("drop_reason"),
            pl.col("of").alias("duplicate_of"),
        )
        reasons = rows["drop_reason"].drop_nulls().value_counts().sort("drop_reason")
        dropped = {str(reason): int(number) for reason, number in reasons.rows()}
        kept = rows.height - sum(dropped.values())
        counts = Counts(rows_in=rows.height, kept=kept, out=kept, dropped=dropped)
        (target,) = job.targets
        commit = publish(job, target, UnitOutput(rows=rows, counts=counts, digests={"values": rows_digest(rows)}))
        return JobResult(commits=(commit,), seconds={"write": time.perf_counter() - started})
