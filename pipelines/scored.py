"""A slice of samples with all that is known of it: its scores, and what is taken down of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.takedowns import REASON
from tokenmill.pipelines.samples import SampleSlice

CONTAMINATED = "contaminated"


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """The record that says which samples of a slice are out before any rule; there is none where no sample is.

    `reason`: why they are out, `taken_down` or `contaminated`.
    """

    folder: StageDir
    commit: Commit
    reason: str = REASON

    @property
    def reference(self) -> InputRef:
        return InputRef(name=self.reason, digest=self.commit.digests["excluded"])

    def keys(self) -> pl.Series:
        """Return the keys of the samples that are out."""
        rows = self.folder.read_rows(self.commit, ["key", "drop_reason"])
        return rows.filter(pl.col("drop_reason").is_not_null())["key"]

    def copies(self) -> pl.DataFrame:
        """Return key and `duplicate_of` of the samples that are copies of something outside."""
        rows = self.folder.read_rows(self.commit, ["key", "drop_reason", "duplicate_of"])
        return rows.filter(pl.col("drop_reason").is_not_null()).drop("drop_reason")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A slice with the records of its scores, in the scorers' order, and with what is out of it before any rule.

    `excluded` are the samples that are taken down, `contaminated` those that are copies of evaluation samples.
    """

    piece: SampleSlice
    scores: tuple[tuple[StageDir, Commit], ...]
    excluded: Excluded | None = None
    contaminated: Excluded | None = None

    @property
    def references(self) -> tuple[InputRef, ...]:
        values = [InputRef(name=d.config.settings["scorer"], digest=c.digests["values"]) for d, c in self.scores]
        out = [part.reference for part in (self.excluded, self.contaminated) if part is not None]
        return (self.piece.reference("content"), *values, *out)

    def is_excluded(self) -> pl.Expr:
        """Return what is true for the rows of taken-down samples."""
        return pl.lit(False) if self.excluded is None else pl.col("key").is_in(self.excluded.keys().to_list())

    def is_contaminated(self) -> pl.Expr:
        """Return what is true for the rows of samples that are copies of evaluation samples."""
        return pl.lit(False) if self.contaminated is None else pl.col("key").is_in(self.contaminated.keys().to_list())

    def table(self, columns: Collection[str] | None = None) -> pl.DataFrame:
        """Return key, digest of the bytes, score columns (None: all) and the first failure of every sample."""
        frame = self.piece.read().select("key", "sha256")
        failure = pl.lit(None, dtype=pl.String).alias("fail_reason")
        frame = frame.with_columns(failure)
        for folder, commit in self.scores:
            if columns is None:
                scores = folder.read_rows(commit).drop("fail_stage", "fail_message", "fail_transient")
            else:
                scores = folder.read_rows(commit, ["key", "fail_reason"], optional=columns)
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
