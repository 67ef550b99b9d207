"""A slice of samples with all that is known of it: its scores, and what is taken down of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from tokenmill.manifests.packed_table import PackedTable, open_rows
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
        """Return `key`, and `contaminated_by`, the evaluation sample that each sample which is out is a copy of."""
        rows = self.folder.read_rows(self.commit, ["key", "drop_reason", "duplicate_of"])
        rows = rows.filter(pl.col("drop_reason").is_not_null())
        return rows.select("key", pl.col("duplicate_of").alias("contaminated_by"))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A slice with the records of its scores, in the scorers' order, and with what is out of it before any rule.

    Attributes:
        excluded: the samples that are taken down; `contaminated`: those that are copies of evaluation samples.
        silent: scorers whose failures are nobody's (`score_only`).
        offers: scorer → its columns, where they are known: tables of others are not opened.
    """

    piece: SampleSlice
    scores: tuple[tuple[StageDir, Commit], ...]
    excluded: Excluded | None = None
    contaminated: Excluded | None = None
    silent: frozenset[str] = frozenset()
    offers: Mapping[str, frozenset[str]] = field(default_factory=dict)

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

    def only(self, scorers: Collection[str]) -> Scored:
        """Return the slice with the scores of some scorers alone."""
        return replace(self, scores=tuple(s for s in self.scores if _scorer(s[0]) in scorers))

    def seen_by(self, scorers: Collection[str]) -> Scored:
        """Return the slice with the scores of some scorers, and of another one only where it failed for a sample."""

        def counts(folder: StageDir, commit: Commit) -> bool:
            return _scorer(folder) in scorers or (bool(commit.counts.failed) and _scorer(folder) not in self.silent)

        return replace(self, scores=tuple(one for one in self.scores if counts(*one)))

    def verdict_table(self, columns: Collection[str]) -> pl.DataFrame:
        """Return key, the first failure and some score columns of every sample, reading no more than that.

        The keys come from the scores, which hold one row for each of the slice's, so the index is not read. A table
        whose keys (or failures) are the same bytes as the first one's is not joined (or parsed).
        """
        columns = set(columns) - {"key", "fail_reason"}
        keys: pl.Series | None = None
        found: dict[str, pl.Series] = {}
        packed: dict[str, list[bytes]] = {}  # keys of the first table, failures of the last one that had any
        failures: list[pl.Series] = []
        for folder, commit in self.scores:
            listens = bool(commit.counts.failed) and _scorer(folder) not in self.silent
            if keys is not None and not listens and not self._offers(folder, columns):
                continue
            table = open_rows(folder, commit)
            if keys is None:
                is_whole = table.num_rows == self.piece.num_rows
                keys = table.read(["key"])["key"] if is_whole else self._keys()
                packed["key"] = table.packed("key") if is_whole else []
            in_order = table.packed("key") == packed["key"]
            wanted = [name for name in table.columns if name in columns and name not in found]
            if listens:
                same = in_order and table.packed("fail_reason") == packed.get("fail_reason")
                wanted += [] if same else ["fail_reason"]
                packed["fail_reason"] = table.packed("fail_reason")
            for column in table.read(wanted) if in_order else _joined(keys, table, wanted):
                if column.name == "fail_reason":
                    failures.append(column)
                else:
                    found[column.name] = column
        keys = self._keys() if keys is None else keys
        return pl.DataFrame([keys, _first(failures, len(keys)), *found.values()])

    def _offers(self, folder: StageDir, columns: Collection[str]) -> bool:
        offered = self.offers.get(_scorer(folder))
        return offered is None or not offered.isdisjoint(columns)

    def _keys(self) -> pl.Series:
        return self.piece.read()["key"]

    def table(self) -> pl.DataFrame:
        """Return key, digest of the bytes, all score columns and the first failure of every sample."""
        frame = self.piece.read().select("key", "sha256")
        failure = pl.lit(None, dtype=pl.String).alias("fail_reason")
        frame = frame.with_columns(failure)
        for folder, commit in self.scores:
            told_already = ("fail_stage", "fail_message", "fail_transient", "sha256")
            scores = folder.read_rows(commit).drop(*told_already, strict=False)
            frame = frame.join(scores, on="key", how="left", suffix="_new", maintain_order="left")
            frame = frame.with_columns(pl.coalesce("fail_reason", "fail_reason_new").alias("fail_reason"))
            frame = frame.drop("fail_reason_new")
        return frame


def _joined(keys: pl.Series, table: PackedTable, columns: list[str]) -> pl.DataFrame:
    """Return columns of a table in the order of the keys; null where it lacks one."""
    rows = table.read(["key", *columns])
    return keys.to_frame().join(rows, on="key", how="left", maintain_order="left").drop("key")


def _first(failures: Sequence[pl.Series], height: int) -> pl.Series:
    """Return the first failure of every sample."""
    if len(failures) == 1:
        return failures[0]
    named = [failure.alias(str(number)) for number, failure in enumerate(failures)]
    none = pl.Series("none", [None], dtype=pl.String).new_from_index(0, height)
    return pl.DataFrame([*named, none]).select(pl.coalesce(pl.all()).alias("fail_reason")).to_series()


def _scorer(folder: StageDir) -> str:
    return str(folder.config.settings["scorer"])


def scored_slices(
    pieces: Sequence[SampleSlice],
    snapshots: Sequence[Snapshot],
    silent: frozenset[str] = frozenset(),
    offers: Mapping[str, frozenset[str]] | None = None,
) -> list[Scored]:
    """Pair slices with their records: the units of a scoring snapshot stand in the order of the slices."""
    commits = [list(snapshot.commits) for snapshot in snapshots]
    folders = [snapshot.folder for snapshot in snapshots]
    return [
        Scored(piece=piece, scores=tuple(zip(folders, found, strict=True)), silent=silent, offers=offers or {})
        for piece, *found in zip(pieces, *commits, strict=True)
    ]
