"""What the comparison reads of a slice: compact columns of the samples that may be kept, and later some more of some.

One call a slice, on any machine; what comes back is a few dozen bytes a sample. Keys come along once, to order samples
that are equal in everything else; vectors and signatures (up to a KB each) are read only for those that are left, and
names only for those that somebody is a copy of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import RunError
from tokenmill.filters.preference import Preference
from tokenmill.filters.rules import Rules
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.scored import Scored

PHASH = "phash"
_SHA256_HEX = 64
_FLOAT16_BYTES = 2
Rows = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class AskedPart:
    """A slice to read, and what an earlier snapshot decided about the very same slice, if it did."""

    scored: Scored
    folder: StageDir
    before: Commit | None = None


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """Reads the samples of a slice that may be kept: they pass the rules, and are not out before them.

    Returns a table in the order of the slice: `row` (UInt32, its place there), `key`, `kept_before`, the preference's
    columns, and as asked `digest_high` and `digest_low` (the first 128 bits of sha256) and `phash`.
    """

    rules: Mapping[str, Rules]
    preference: Preference
    exact: bool
    phash: bool

    def __call__(self, part: AskedPart) -> pl.DataFrame:
        table = passing(part.scored, self.rules, self.preference.columns | ({PHASH} if self.phash else set()))
        columns = [table.select("row", "key"), self.preference.values(table)]
        if self.exact:
            columns.append(_digests(part.scored.piece.read(["sha256"])["sha256"].gather(table["row"])))
        if self.phash:
            columns.append(table.select(pl.col(PHASH).cast(pl.UInt64)))
        kept = pl.col("key").is_in(kept_keys(part.folder, part.before)) if part.before else pl.lit(False)
        found = pl.concat([one for one in columns if one.width], how="horizontal")
        return found.with_columns(kept.alias("kept_before"))


def passing(scored: Scored, rules: Mapping[str, Rules], columns: frozenset[str] | set[str]) -> pl.DataFrame:
    """Return the samples of a slice that may be kept, with their `row` in it; nobody is a copy of the others.

    `rules` are those of each source.
    """
    own = rules[scored.piece.source]
    table = scored.verdict_table(own.columns | columns).with_row_index("row")
    passes = own.apply(table).is_null() & table["fail_reason"].is_null()
    return table.filter(passes).filter(~scored.is_excluded()).filter(~scored.is_contaminated())


def kept_keys(folder: StageDir, commit: Commit) -> list[str]:
    """Return the keys that a unit of an earlier snapshot kept."""
    rows = folder.read_rows(commit, ["key", "drop_reason"])
    return rows.filter(pl.col("drop_reason").is_null())["key"].to_list()


@dataclass(frozen=True, kw_only=True)
class KeptNames:
    """Reads the names of the samples that a unit of an earlier snapshot kept: `source`, `key` and `shard`."""

    folder: StageDir

    def __call__(self, commit: Commit) -> pl.DataFrame:
        rows = self.folder.read_rows(commit, ["source", "key", "drop_reason"])
        kept = rows.filter(pl.col("drop_reason").is_null()).drop("drop_reason")
        return kept.with_columns(shard=pl.lit(commit.inputs[0].name))


def names(asked: tuple[Scored, Rows, NDArray[np.bool_]]) -> pl.Series:
    """Return the names of some rows of a slice: `source/key`, or `source/shard/key` where a source repeats the key."""
    scored, rows, repeated = asked
    source, shard = scored.piece.source, scored.piece.commit.inputs[0].name
    table = pl.DataFrame({"key": scored.piece.read(["key"])["key"].gather(rows), "repeated": repeated})
    start = pl.when("repeated").then(pl.lit(f"{source}/{shard}/")).otherwise(pl.lit(f"{source}/"))
    return table.select(pl.concat_str(start, "key")).to_series()


@dataclass(frozen=True, kw_only=True)
class Values:
    """Reads a column of vectors or signatures for some rows of a slice: an array (rows, width), and which have one."""

    column: str

    def __call__(self, asked: tuple[Scored, Rows]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        scored, rows = asked
        piece = scored.piece
        values = scored.verdict_table({self.column})[self.column].gather(rows)
        return matrix(values, f"{piece.source}, {piece.commit.inputs[0].name}")


def matrix(values: pl.Series, where: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a column of equally long lists (or float16 in bytes) as an array without nulls, and where there is one.

    Raises:
        RunError: the lists differ in length; it names `where` they are.
    """
    there = values.is_not_null().to_numpy()
    some = values.drop_nulls()
    if not len(some):
        return np.empty((0, 0), np.float32), there
    is_binary = values.dtype == pl.Binary
    sizes = _sizes(some).unique()
    if len(sizes) > 1 or (is_binary and sizes[0] % _FLOAT16_BYTES):
        raise RunError(f"{where}: the samples' values of {values.name} differ in length and cannot be compared")
    flat = np.frombuffer(b"".join(some), np.float16) if is_binary else some.explode().to_numpy()
    return flat.reshape(len(some), -1), there


def _sizes(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Binary:
        return values.bin.size()
    return values.arr.len() if isinstance(values.dtype, pl.Array) else values.list.len()


def _digests(sha256: pl.Series) -> pl.DataFrame:
    """Return the first 128 bits of each digest as two numbers; two of 10^9 samples share them by chance in 10^20."""
    texts = sha256.to_list()
    try:
        whole = bytes.fromhex("".join(texts))
    except ValueError:
        whole = b""
    if len(whole) * 2 != _SHA256_HEX * len(texts):  # a source with digests of its own
        whole = b"".join(hashlib.sha256(str(text).encode()).digest() for text in texts)
    words = np.frombuffer(whole, ">u8").reshape(len(texts), 4).astype(np.uint64)
    return pl.DataFrame({"digest_high": words[:, 0], "digest_low": words[:, 1]})
