"""The samples of a source, cut into the pieces that scoring, captioning and tokenizing work on.

A slice is a range of rows of one ingested unit (or, for video, of one unit of clips). Its identity is the content of
the rows, not the bytes of any table, so re-indexing the same shard elsewhere costs nothing downstream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.units import RowRange, cut_rows


@dataclass(frozen=True, kw_only=True)
class SampleSlice:
    """Rows [range.start, range.end) of a unit's good rows; `settings` opens the source again in a worker."""

    source: str
    settings: Mapping[str, Any]
    folder: StageDir
    commit: Commit
    range: RowRange

    def reference(self, digest: str) -> InputRef:
        """Return the input this slice is, under one of the unit's logical digests (`content`, `rows`)."""
        name, value = self.commit.inputs[0].name, self.commit.digests[digest]
        if self.range.whole:
            return InputRef(name=name, digest=value)
        return InputRef(name=name, digest=value, start=self.range.start, end=self.range.end, unit_of_range="rows")

    def read(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Read the slice's rows (of all columns, or some): those that came through the stage that made them."""
        dropping = ["drop_reason"] if self.folder.config.stage == "split" else []
        wanted = None if columns is None else list(dict.fromkeys([*columns, "fail_reason", *dropping]))
        rows = self.folder.read_rows(self.commit, wanted)
        good = rows.filter(pl.col("fail_reason").is_null())
        if "drop_reason" in good.columns:
            good = good.filter(pl.col("drop_reason").is_null())
        return good.slice(self.range.start, self.range.end - self.range.start)

    @property
    def num_rows(self) -> int:
        return self.range.end - self.range.start


def slices(snapshot: Snapshot, settings: Mapping[str, Any], *, max_rows: int, max_bytes: int) -> list[SampleSlice]:
    """Cut a snapshot's units into slices, in order."""
    found = []
    for commit in snapshot.commits:
        ranges = cut_rows(commit.counts.out, commit.totals.get("bytes", 0), max_rows=max_rows, max_bytes=max_bytes)
        found += [
            SampleSlice(
                source=snapshot.folder.source, settings=settings, folder=snapshot.folder, commit=commit, range=piece
            )
            for piece in ranges
        ]
    return found


def clip_seconds(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return when a clip begins and ends in its film: by its times, or where an old table has none by its frames."""
    if row.get("end_seconds") is not None:
        return row["start_seconds"], row["end_seconds"]
    return row["start_frame"] / row["fps"], row["end_frame"] / row["fps"]


FAILURE_COLUMNS: dict[str, Any] = {
    "fail_stage": pl.String,
    "fail_reason": pl.String,
    "fail_message": pl.String,
    "fail_transient": pl.Boolean,
}
