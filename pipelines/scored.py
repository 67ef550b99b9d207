"""A slice of samples with all that is known of it: its scores, and what is taken down of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.takedowns import REASON
from tokenmill.pipelines.samples import SampleSlice


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """The record that says which samples of a slice are taken down; there is none where no sample is."""

    folder: StageDir
    commit: Commit

    @property
    def reference(self) -> InputRef:
        return InputRef(name=REASON, digest=self.commit.digests["excluded"])

    def keys(self) -> pl.Series:
        """Return the keys of the taken-down samples."""
        rows = self.folder.read_rows(self.commit, ["key", "drop_reason"])
        return rows.filter(pl.col("drop_reason").is_not_null())["key"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A slice with the records of its scores, in the scorers' order, and with what is taken down of it."""

    piece: SampleSlice
    scores: tuple[tuple[StageDir, Commit], ...]
    excluded: Excluded | None = None

    @property
    def references(self) -> tuple[InputRef, ...]:
        values = [InputRef(name=d.config.settings["scorer"], digest=c.digests["values"]) for d, c in self.scores]
        return (self.piece.reference("content"), *values, *([self.excluded.reference] if self.excluded else []))

    def is_excluded(self) -> pl.Expr:
        """Return what is true for the rows of taken-down samples."""
        return pl.lit(False) if self.excluded is None else pl.col("key").is_in(self.excluded.keys().to_list())

    def table(self) -> pl.DataFrame:
        """Return key, digest of the bytes, all score columns and the first failure of every sample."""
        frame = self.piece.read().select("key", "sha256")
        failure = pl.lit(None, dtype=pl.String).alias("fail_reason")
        frame = frame.with_columns(failure)
        for folder, commit in self.scores:
            scores = folder.read_rows(commit).drop("fail_stage", "fail_message", "fail_transient")
            frame = frame.join(scores, on="key", how="left", suffix="_new", maintain_order="left")
            frame = frame.with_columns(pl.coalesce("fail_reason", "fail_reason_new").alias("fail_reason"))
            frame = frame.drop("fail_reason_new")
        return frame


def scored_slices(pieces: Sequence[SampleSlice], snapshots: Sequence[Snapshot]) -> list[Scored]:
    """Pair slices with their records: the units of a scoring snapshot stand in the order of the slices."""
    return [
        Scored(piece=piece, scores=tuple((snapshot.folder, snapshot.commits[index]) for snapshot in snapshots))
        for index, piece in enumerate(pieces)
    ]
