"""Pieces of documents as stretches of ids: joined where they touch, and compared between a plan and the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.manifests.plan_border import (
    DOCUMENT_KEY,
    SAME_SHARD,
    border_before,
    borders_before,
    consumed_rows,
    remaining_rows,
    window_rows,
)
from tokenmill.manifests.plans import DOCUMENT_COLUMNS, Plan, read_named_table

PIECE_COLUMNS = (*DOCUMENT_KEY, "start", "length")
_SAMPLE = ("shard", "sample", "repetition", "frame")
_NAMES = ("source", "shard", "template")
_TOLD = 9  # faults of a kind; more of them say nothing more


def joined(rows: pl.DataFrame, key: Sequence[str] = DOCUMENT_KEY) -> pl.DataFrame:
    """Make one row of the pieces of a document that touch, in the order of `key` and `start`; overlaps stay apart."""
    ordered = rows.select(*key, "start", "length").sort(*key, "start", "length")
    is_same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in key)
    touches = is_same & (pl.col("start") == (pl.col("start") + pl.col("length")).shift())
    runs = ordered.with_columns(run=(~touches.fill_null(False)).cum_sum())
    together = runs.group_by("run", maintain_order=True).agg(
        *(pl.col(name).first() for name in key), pl.col("start").first(), pl.col("length").sum()
    )
    return together.drop("run").cast({"length": rows.schema["length"]})


def overlapping(rows: pl.DataFrame, key: Sequence[str] = _SAMPLE) -> pl.DataFrame:
    """Return the pieces that begin before the one ahead of them in the same document ends."""
    ordered = rows.sort(*key, "start", "length")
    is_same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in key)
    return ordered.filter(is_same & (pl.col("start") < (pl.col("start") + pl.col("length")).shift()))


def continued_faults(plan: Plan) -> Iterator[str]:
    """Compare a plan with those it goes back to: what was consumed of all and what this plan has is every id once.

    Documents that this plan left out (its `dropped` tables name them) may be missing, and of shards that were made anew
    nothing is compared. Holds the pieces of this plan and all that were consumed in memory. Raises ManifestError when
    the plan before is gone; where one further back is, after what is found without it.
    """
    border = border_before(plan)
    if border is None:
        return
    ours = _all_of(window_rows(plan, number, PIECE_COLUMNS) for number in range(len(plan.windows)))
    consumed, gone = [ours], None
    try:
        for place in borders_before(border):
            same = place.plan.shards.join(plan.shards, on=SAME_SHARD, how="semi")["shard"].implode()
            consumed += [rows.filter(pl.col("shard").is_in(same)) for rows in consumed_rows(place, PIECE_COLUMNS)]
    except ManifestError as error:
        gone = error
    for row in overlapping(pl.concat(consumed)).head(_TOLD).iter_rows(named=True):
        yield f"{_place(plan, row)}: id {row['start']} was consumed before, or comes twice"
    numbers = range(len(border.plan.windows))
    remaining = joined(_all_of(remaining_rows(border, number, PIECE_COLUMNS) for number in numbers))
    lost = remaining.join(joined(ours), on=list(PIECE_COLUMNS), how="anti")
    for row in lost.join(_left_out(plan), on=["shard", "sample"], how="anti").head(_TOLD).iter_rows(named=True):
        told = f"{row['length']} ids from {row['start']} on remained of plan {border.plan.folder.path}"
        yield f"{_place(plan, row)}: {told}"
    if gone is not None:
        raise gone


def _place(plan: Plan, row: Mapping[str, Any]) -> str:
    return f"{plan.folder.path}: sample {row['sample']} of {row['shard']}, pass {row['repetition']}"


def _all_of(tables: Iterable[pl.DataFrame]) -> pl.DataFrame:
    kinds = {name: DOCUMENT_COLUMNS[name] for name in PIECE_COLUMNS}
    empty = pl.DataFrame(schema={name: pl.String if name in _NAMES else kind for name, kind in kinds.items()})
    return pl.concat([empty, *tables])


def _left_out(plan: Plan) -> pl.DataFrame:
    """Return `shard` and `sample` of everything that a plan's windows list as left out."""
    tables = [pl.DataFrame(schema={"shard": pl.String, "sample": pl.Int32})]
    for unit, attempt in plan.folder.record_names().items():
        entry = plan.folder.read_commit(unit, attempt).file("dropped")
        if entry is not None:
            rows = read_named_table(plan.folder.store, plan.folder.at(entry.name), ["shard", "sample"])
            tables.append(rows.cast({"shard": pl.String}))
    return pl.concat(tables)
