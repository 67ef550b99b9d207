"""Stage select: rules over annotations; no pixel is read, so new thresholds cost seconds.

Rules judge a sample by its own columns. What is decided over the whole snapshot (`duplicates.py`) is joined by slice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import polars as pl

from tokenmill.filters.rules import Rules
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.records import Commit, Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import REASON
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.scored import CONTAMINATED, Scored

VERSION = 1
SCHEMA = 1


def select_work(
    store: Store,
    source: str,
    scored: Sequence[Scored],
    duplicates: Snapshot | None,
    first_part: int,
    rules: Rules,
    carry: Sequence[str],
    parents: Mapping[str, str],
) -> StageWork:
    """Describe the selection of one source; its slices are parts `first_part`… of the modality's duplicates."""
    config = StageConfig(
        stage="select",
        version=VERSION,
        schema=SCHEMA,
        settings={"rules": rules.identity, "carry": list(carry)},
    )
    units = []
    verdicts = None if duplicates is None else list(duplicates.commits[first_part : first_part + len(scored)])
    for index, part in enumerate(scored):
        found = None if verdicts is None else verdicts[index]
        extra = () if found is None else (InputRef(name="duplicates", digest=found.digests["values"]),)
        units.append(Unit(inputs=(*part.references, *extra), payload={"part": part, "duplicates": found}))
    return StageWork(
        title=f"select {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=units,
        make_worker=partial(SelectWorker, rules, tuple(carry), None if duplicates is None else duplicates.folder),
        parents=parents,
    )


class SelectWorker:
    """Joins a slice's annotations and says of every sample: kept, dropped and why, or failed and why."""

    def __init__(self, rules: Rules, carry: tuple[str, ...], duplicates: StageDir | None) -> None:
        self._rules, self._carry, self._duplicates = rules, carry, duplicates
        self._columns = rules.columns | set(carry)

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        part: Scored = job.unit.payload["part"]
        table = part.verdict_table(self._columns)
        read_s = time.perf_counter() - started
        judged = self._rules.judge(table).select(pl.col("reason").alias("rule"), "rescued_by")
        table = self._with_duplicates(table.hstack(judged), job.unit.payload["duplicates"])
        table = _with_contaminated(table, part)
        rows = table.select(*self._verdicts(part.is_excluded()))
        kept = rows.filter(pl.col("keep"))
        counts = Counts(
            rows_in=rows.height,
            kept=kept.height,
            out=kept.height,
            dropped=_numbers(rows["drop_reason"]),
            failed=_numbers(rows["fail_reason"]),
        )
        (target,) = job.targets
        output = UnitOutput(
            rows=rows,
            counts=counts,
            digests={"kept": rows_digest(kept.select("key", *self._carry))},
            totals=_rescued(rows["rescued_by"]) if self._rules.rescues else {},
        )
        commit = publish(job, target, output)
        seconds = {"read": read_s, "query": time.perf_counter() - started - read_s}
        return JobResult(commits=(commit,), seconds=seconds)

    def _verdicts(self, is_excluded: pl.Expr) -> Iterator[pl.Expr]:
        """Yield the columns of a selection; a sample that failed or was taken down is not judged."""
        failed = pl.col("fail_reason").is_not_null()
        contaminated = pl.when(pl.col("contaminated_by").is_not_null()).then(pl.lit(CONTAMINATED))
        why = pl.when(is_excluded).then(pl.lit(REASON)).otherwise(pl.coalesce("rule", contaminated, "drop_reason"))
        reason = pl.when(~failed).then(why)
        of = pl.when(reason == CONTAMINATED).then("contaminated_by").otherwise("duplicate_of").alias("duplicate_of")
        yield from (pl.col("key"), reason.alias("drop_reason"), pl.col("fail_reason"), of)
        yield from (pl.col(name) for name in self._carry)
        yield (reason.is_null() & ~failed).alias("keep")
        if self._rules.rescues:
            yield pl.when(~failed & ~is_excluded).then(pl.col("rescued_by")).alias("rescued_by")

    def _with_duplicates(self, table: pl.DataFrame, commit: Commit | None) -> pl.DataFrame:
        if commit is None or self._duplicates is None:
            none = pl.lit(None, dtype=pl.String)
            return table.with_columns(none.alias("drop_reason"), none.alias("duplicate_of"))
        found = self._duplicates.read_rows(commit, ["key", "drop_reason", "duplicate_of"])
        return table.join(found, on="key", how="left", maintain_order="left")


def _numbers(reasons: pl.Series) -> dict[str, int]:
    if reasons.null_count() == len(reasons):
        return {}
    return dict(sorted((reason, number) for reason, number in reasons.value_counts().iter_rows() if reason is not None))


def _with_contaminated(table: pl.DataFrame, part: Scored) -> pl.DataFrame:
    if part.contaminated is None:
        return table.with_columns(pl.lit(None, dtype=pl.String).alias("contaminated_by"))
    return table.join(part.contaminated.copies(), on="key", how="left", maintain_order="left")


def _rescued(by: pl.Series) -> dict[str, int]:
    """Count the rows each rule's rescue kept."""
    found: Counter[str] = Counter()
    for names, number in _numbers(by).items():
        found.update({f"rescued.{name}": number for name in names.split(",")})
    return dict(sorted(found.items()))
