"""Verify that a plan's documents are as long as the segments in the indexes make them.

How segments become a document is known to another room, which hands it in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.stagedir import read_table
from tokenmill.manifests.verify_window import DOCUMENT

_THREADS = 8
_WHOLE = (*DOCUMENT, "frames", "template", "variant")
DocumentLengths = Callable[[pl.DataFrame, Mapping[str, Any]], Sequence[int | str]]
"""Takes rows of `segments` (JSON), `template`, `variant`, `frame`, `frames`, and a plan's description.

Gives the length of each document, or why there is none.
"""


@dataclass(frozen=True, kw_only=True)
class PlanChecks:
    """What other rooms know of plans: the templates there are, and how long a document is. None: not compared."""

    templates: frozenset[str] | None = None
    lengths: DocumentLengths | None = None


def length_faults(plan: Plan, documents: pl.DataFrame, checks: PlanChecks) -> Iterator[str]:
    """Read the indexes of a window's shards, and yield which documents are not as long as their segments."""
    if checks.lengths is None:
        return
    ends = documents.with_columns(pl.col("shard", "template").cast(pl.String)).group_by(_WHOLE, maintain_order=True)
    whole = ends.agg(end=(pl.col("start") + pl.col("length")).max())
    parts = whole.partition_by("shard", maintain_order=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        for part, read in zip(
            parts, pool.map(partial(_segments, plan), [one["shard"][0] for one in parts]), strict=True
        ):
            yield from [read] if isinstance(read, str) else _shard_faults(plan, part, read, checks.lengths)


def _segments(plan: Plan, shard: str) -> pl.DataFrame | str:
    known = plan.shards.filter(pl.col("shard").cast(pl.String) == shard)
    if not len(known):
        return f"reads {shard}, which shards.parquet does not name"
    index, sha256 = known.select(pl.col("index").cast(pl.String), "index_sha256").row(0)
    try:
        table = read_table(plan.folder.store, index, ["segments"], sha256=sha256)
    except (ManifestError, StorageError) as error:
        return str(error)
    return table.with_row_index("sample").with_columns(pl.col("sample").cast(pl.Int32), is_there=pl.lit(True))


def _shard_faults(plan: Plan, part: pl.DataFrame, read: pl.DataFrame, lengths: DocumentLengths) -> Iterator[str]:
    joined = part.join(read, on="sample", how="left", maintain_order="left")
    absent = joined.filter(pl.col("segments").is_null())
    for sample, shard, is_there in absent.select("sample", "shard", "is_there").rows():
        yield f"sample {sample} of {shard}: {'failed to tokenize' if is_there else 'its index has no such row'}"
    present = joined.filter(pl.col("segments").is_not_null())
    for row, length in zip(present.iter_rows(named=True), lengths(present, plan.description), strict=True):
        where = f"sample {row['sample']} of {row['shard']}, as {row['template']}"
        if isinstance(length, str):
            yield f"{where}: {length}"
        elif row["end"] > length or (row["end"] < length and not _may_end_early(plan, row["template"])):
            yield f"{where}: the plan takes it to id {row['end']:,}, it is {length:,} long"


def _may_end_early(plan: Plan, template: str) -> bool:
    """Say whether a plan may leave out the end of a document: later turns of a chat, or what was trained on before."""
    asked = plan.folder.config.settings.get("plan", {})
    return bool(plan.description.get("continues")) or (template == "chat" and asked.get("shorten_long_chats", False))
