"""Stage takedown: which samples of a slice the takedown lists speak of. There is no such stage without a list.

The folder is named by the union of the lists and a unit by the rows of its slice, so a resume reads no index, a new
list costs one reading of the indexes, and only slices that lose a sample get another selection.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import polars as pl

from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Counts
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import REASON, Takedowns
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.scored import Excluded, Scored

VERSION = 1
SCHEMA = 1


def takedown_work(store: Store, source: str, scored: Sequence[Scored], takedowns: Takedowns) -> StageWork:
    """Describe the search for taken-down samples in one source; scores count only where looks are asked for."""
    config = StageConfig(stage="takedown", version=VERSION, schema=SCHEMA, settings={"lists": takedowns.digest})
    units = []
    for part in scored:
        looks = part.references[1:] if takedowns.has_hashes_of_looks else ()
        units.append(Unit(inputs=(part.piece.reference("rows"), *looks), payload={"part": part}))
    return StageWork(
        title=f"takedown {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=units,
        make_worker=partial(TakedownWorker, source, takedowns),
    )


def with_takedowns(scored: Sequence[Scored], found: Snapshot | None) -> list[Scored]:
    """Tell every slice which of its samples are taken down; slices without one stay as they are."""
    if found is None:
        return list(scored)
    return [
        replace(part, excluded=Excluded(folder=found.folder, commit=commit)) if commit.counts.dropped else part
        for part, commit in zip(scored, found.commits, strict=True)
    ]


@dataclass(frozen=True)
class TakedownWorker:
    """Compares one slice after the other with the lists."""

    source: str
    takedowns: Takedowns

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        part: Scored = job.unit.payload["part"]
        rows = part.piece.read()
        if self.takedowns.has_hashes_of_looks:
            looks = part.table()
            if "phash" in looks.columns:
                rows = rows.join(looks.select("key", "phash"), on="key", how="left", maintain_order="left")
        reason = pl.when(self.takedowns.mask(rows, self.source)).then(pl.lit(REASON)).alias("drop_reason")
        table = rows.select("key", reason)
        excluded = table.filter(pl.col("drop_reason").is_not_null()).select("key")
        kept = table.height - excluded.height
        dropped = {REASON: excluded.height} if excluded.height else {}
        counts = Counts(rows_in=table.height, kept=kept, out=kept, dropped=dropped)
        (target,) = job.targets
        output = UnitOutput(rows=table, counts=counts, digests={"excluded": rows_digest(excluded)})
        return JobResult(commits=(publish(job, target, output),), seconds={"match": time.perf_counter() - started})
