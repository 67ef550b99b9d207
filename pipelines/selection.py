"""Stage select: rules over annotations; no pixel is read, so new thresholds cost seconds.

Rules judge a sample by its own columns. What is decided over the whole snapshot (`duplicates.py`) is joined by slice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import polars as pl

from tokenmill.filters.rules import Judgement, Rules
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
        judged = self._rules.judge(table)
        table = table.with_columns(
            judged.reason().alias("rule"),
            pl.when(part.is_excluded()).then(pl.lit(REASON)).alias("taken_down"),
        )
        table = _with_contaminated(table, part)
        table = self._with_duplicates(table, job.unit.payload["duplicates"])
        read_s = time.perf_counter() - started
        rows, rescued = self._verdicts(table, judged)
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
            rows=rows, counts=counts, digests={"kept": rows_digest(kept.select("key", *self._carry))}, totals=rescued
        )
        commit = publish(job, target, output)
        return JobResult(commits=(commit,), seconds={"query": read_s, "write": time.perf_counter() - started - read_s})

    def _verdicts(self, table: pl.DataFrame, judged: Judgement) -> tuple[pl.DataFrame, dict[str, int]]:
        """Return the unit's rows, and how many samples came to a rule, failed it and were rescued."""
        contaminated = pl.when(pl.col("contaminated_by").is_not_null()).then(pl.lit(CONTAMINATED))
        why = pl.coalesce("taken_down", "rule", contaminated, "drop_reason")
        reason = pl.when(pl.col("fail_reason").is_null()).then(why).alias("drop_reason")
        of = pl.when(reason == CONTAMINATED).then("contaminated_by").otherwise("duplicate_of").alias("duplicate_of")
        rows = table.select("key", reason, "fail_reason", of, *self._carry).with_columns(
            (pl.col("drop_reason").is_null() & pl.col("fail_reason").is_null()).alias("keep")
        )
        if not self._rules.rescues:
            return rows, {}
        judgeable = table["fail_reason"].is_null() & table["taken_down"].is_null()
        by = judged.rescued_by().zip_with(judgeable, pl.Series([None], dtype=pl.String))
        rescued = _numbers(by.str.split(",").explode(keep_nulls=False, empty_as_null=False))
        return rows.with_columns(by.alias("rescued_by")), {
            f"rescued.{rule}": number for rule, number in rescued.items()
        }

    def _with_duplicates(self, table: pl.DataFrame, commit: Commit | None) -> pl.DataFrame:
        if commit is None or self._duplicates is None:
            none = pl.lit(None, dtype=pl.String)
            return table.with_columns(none.alias("drop_reason"), none.alias("duplicate_of"))
        found = self._duplicates.read_rows(commit, ["key", "drop_reason", "duplicate_of"])
        return table.join(found, on="key", how="left", maintain_order="left")


def _with_contaminated(table: pl.DataFrame, part: Scored) -> pl.DataFrame:
    if part.contaminated is None:
        return table.with_columns(pl.lit(None, dtype=pl.String).alias("contaminated_by"))
    return table.join(part.contaminated.copies(), on="key", how="left", maintain_order="left")


def _numbers(reasons: pl.Series) -> dict[str, int]:
    found = reasons.drop_nulls().value_counts(name="number")
    return dict(sorted((str(reason), int(number)) for reason, number in found.iter_rows()))
