"""Which samples of freshly planned shards were consumed already in this epoch, under whatever shard they had then.

A shard that was made anew (a sample was taken down, captions were written again) is another shard to the plan, but most
of its samples are the old ones. Who was seen is found once, by source and key, before any window is planned: windows
then look rows up and read no old index. Reads the consumed rows of the plans before, and only where a shard left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, RecipeError, StorageError
from tokenmill.manifests.plan_border import SAME_SHARD, Border, border_before, consumed_rows
from tokenmill.manifests.plans import read_named_table
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.plan_windows import ShardPass

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SEEN_COLUMNS = {"shard": pl.String, "sample": pl.Int32, "repetition": pl.Int32}
_PASSES = {"shard": pl.String, "repetition": pl.Int32}
_CONSUMED = ("source", "shard", "sample", "repetition")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRows:
    """The table that `seen_samples` gives, as the bytes of its file: 2 bytes a row stay in memory, as rows it is 24.

    Rows lie in the order of their shards, so those of one pass are in few of the file's groups of 65,536.
    """

    path: str
    data: bytes

    def of(self, shard: ShardPass) -> NDArray[np.int32]:
        """Return the rows of a shard's index that were consumed in this pass; raises ManifestError naming the table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(BytesIO(self.data), page_checksum_verification=True)
            groups = [n for n in range(file.num_row_groups) if _may_hold(file.metadata.row_group(n), shard.archive)]
            rows = pl.DataFrame(file.read_row_groups(groups, list(SEEN_COLUMNS)))
        except (pa.ArrowException, OSError, ValueError) as error:
            told = " ".join(str(error).split())
            raise ManifestError(f"{self.path}: not a readable table ({told}); remove it and plan again") from error
        here = (pl.col("shard") == shard.archive) & (pl.col("repetition") == shard.repetition)
        return rows.filter(here)["sample"].to_numpy().astype(np.int32)


def _may_hold(group: pq.RowGroupMetaData, shard: str) -> bool:
    told = group.column(0).statistics
    return told is None or not told.has_min_max or bool(told.min <= shard <= told.max)


def seen_samples(border: Border, shards: pl.DataFrame, fresh: Sequence[ShardPass]) -> pl.DataFrame:
    """Return shard, sample and repetition of what of the `fresh` passes was consumed before, sorted.

    `shards` are those of the new snapshots. Raises RecipeError naming what is gone that would tell.
    """
    passes: dict[str, list[ShardPass]] = {}
    for one in fresh:
        passes.setdefault(one.source, []).append(one)
    found = [pl.DataFrame(schema=SEEN_COLUMNS)]
    place: Border | None = border
    while place is not None:
        left = place.plan.shards.join(shards, on=SAME_SHARD, how="anti")
        gone = left.filter(pl.col("source").is_in(list(passes)))["shard"].to_list()
        again = _begun_passes(place.plan.shards.join(shards, on=SAME_SHARD, how="semi"), fresh)
        rows = _consumed(place, gone, again)
        found.append(rows.join(again, on=["shard", "repetition"], how="semi").select(list(SEEN_COLUMNS)))
        for source, old in rows.join(again, on=["shard", "repetition"], how="anti").group_by("source"):
            found.append(_by_key(border.plan.folder.store, old, place.plan.index_of, passes[str(source[0])]))
        told = place.plan.description.get("continues", {}).get("unfinished", [])
        needs_more = bool(gone) or not again.is_empty() or not passes.keys().isdisjoint(told)
        place = _before(place) if needs_more else None
    return pl.concat(found).unique().sort("shard", "repetition", "sample")


def unfinished_sources(border: Border, shards: pl.DataFrame) -> list[str]:
    """Name the sources of which a plan before had consumed what the plan now continued does not know any more."""
    before = border.plan
    left = before.shards.join(shards, on=SAME_SHARD, how="anti")
    lowered = shards.filter(pl.col("begun") > pl.col("epochs"))
    known = before.description.get("continues", {}).get("unfinished", [])
    return sorted({*left["source"], *lowered["source"], *known})


def _before(place: Border) -> Border | None:
    try:
        return border_before(place.plan)
    except (ManifestError, StorageError) as error:
        raise RecipeError(
            f"plan.continue_from: what was seen before {place.plan.folder.path} is written in a plan that is gone "
            f"({error}); restore it, or plan without plan.continue_from"
        ) from error


def _begun_passes(same: pl.DataFrame, fresh: Sequence[ShardPass]) -> pl.DataFrame:
    """Return the fresh passes that a plan had begun: the mix was lowered in between.

    `same` are the shards that the plan had and that are still the same: under one name there may lie another by now.
    """
    begun = dict(same.select("shard", "begun").iter_rows())
    some = [(one.archive, one.repetition) for one in fresh if begun.get(one.archive, 0.0) > one.repetition + one.had]
    return pl.DataFrame(sorted(set(some)), schema=_PASSES, orient="row")


def _consumed(place: Border, gone: Sequence[str], again: pl.DataFrame) -> pl.DataFrame:
    """Return the consumed samples of shards that left, and of passes that are planned again."""
    found = [pl.DataFrame(schema={"source": pl.String, **SEEN_COLUMNS})]
    if gone or not again.is_empty():
        is_wanted = pl.col("shard").is_in(gone)
        for rows in consumed_rows(place, _CONSUMED):
            found.append(rows.filter(is_wanted).unique())
            found.append(rows.join(again, on=["shard", "repetition"], how="semi").unique())
    return pl.concat(found).unique()


def _by_key(store: Store, old: pl.DataFrame, index_of: Mapping[str, str], passes: Sequence[ShardPass]) -> pl.DataFrame:
    """Find consumed samples of shards that left among those of a source's fresh passes, by key."""
    keys = [
        rows.with_columns(key=_keys(store, index_of[str(shard[0])]).gather(rows["sample"]))
        for shard, rows in old.group_by("shard")
    ]
    seen = pl.concat(keys).select("key", "repetition").unique()
    found = [pl.DataFrame(schema=SEEN_COLUMNS)]
    by_index: dict[str, list[ShardPass]] = {}
    for one in passes:
        by_index.setdefault(one.index, []).append(one)
    for index, some in by_index.items():
        rows = pl.DataFrame({"key": _keys(store, index)}).with_row_index("sample").cast({"sample": pl.Int32})
        wanted = {(one.archive, one.repetition) for one in some}
        again = pl.DataFrame(sorted(wanted), schema=_PASSES, orient="row")
        found.append(rows.join(seen, on="key").join(again, on="repetition").select(list(SEEN_COLUMNS)))
    return pl.concat(found)


def _keys(store: Store, index: str) -> pl.Series:
    try:
        return read_named_table(store, index, ["key"])["key"]
    except (ManifestError, StorageError) as error:
        raise RecipeError(
            f"plan.continue_from: {index} would tell which samples of a shard that was made anew were seen already, "
            f"and cannot be read ({error}); restore it, or plan without plan.continue_from"
        ) from error
