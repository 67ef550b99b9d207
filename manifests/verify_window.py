"""Verify one window of a plan against itself: packs and documents, compared as whole columns.

A window is some 10^5 documents; going through them one by one would take seconds a window and hours a plan. As columns
it takes about 50 ms, so a plan of 10^7 documents is verified in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

DOCUMENT = ("shard", "sample", "repetition", "frame")
_WEIGHT_SHARE = 1e-4  # documents' weights are float32, packs' float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a plan says that holds for all of its windows.

    Attributes:
        most_weight: of an id.
        templates: that the plan took, or that there are at all; None where nobody knows.
        shards: `shard`, `source` and `num_rows` of its index (null where unknown) of every shard.
        continues: the plan goes on from another, which took some pieces of documents already.
    """

    context: int
    most_weight: float
    shards: pl.DataFrame
    templates: frozenset[str] | None = None
    continues: bool = False


@dataclass(slots=True)
class WindowSums:
    """What a plan's description and its other windows are compared with."""

    tokens: int = 0
    pieces: int = 0
    by_source: dict[str, int] = field(default_factory=dict)
    by_template: dict[str, int] = field(default_factory=dict)

    def add(self, documents: pl.DataFrame) -> None:
        self.tokens += int(documents["length"].cast(pl.Int64).sum())
        self.pieces += len(documents)
        for column, sums in (("source", self.by_source), ("template", self.by_template)):
            lengths = documents.group_by(column).agg(pl.col("length").cast(pl.Int64).sum())
            for name, tokens in lengths.rows():
                sums[str(name)] = sums.get(str(name), 0) + tokens


def window_faults(documents: pl.DataFrame, packs: pl.DataFrame, expected: Expected) -> Iterator[str]:
    """Yield what is wrong with a window's tables, but for its pieces (`piece_gaps`)."""
    yield from _row_faults(documents, expected)
    if packs["pack"].to_list() != list(range(len(packs))):
        yield f"its packs are not numbered 0 to {len(packs) - 1}"
    counts = packs["documents"].to_numpy().astype(np.int64)
    if counts.sum() != len(documents) or (len(counts) and counts.min() < 1):
        yield f"holds {len(documents):,} documents, its packs {counts.sum():,}, the emptiest {counts.min(initial=0)}"
        return
    starts = np.cumsum(counts) - counts
    packed, slots = np.repeat(np.arange(len(counts)), counts), np.arange(len(documents)) - np.repeat(starts, counts)
    for row in np.flatnonzero((documents["pack"].to_numpy() != packed) | (documents["slot"].to_numpy() != slots)):
        yield f"row {row} is not slot {slots[row]} of pack {packed[row]}, its place in the order"
    yield from _pack_faults(documents, packs, starts, expected.context)


def piece_gaps(documents: pl.DataFrame, *, continues: bool) -> pl.DataFrame:
    """Return the pieces that don't begin where the one before of the same document ended.

    Columns: `shard`, `sample`, `repetition`, `frame`, `start`, and `due`, where it should have begun. A plan that goes
    on from another holds only what was left of some documents: there pieces may not overlap, and that is all.
    """
    pieces = documents.select(*DOCUMENT, "frames", "start", end=pl.col("start") + pl.col("length"))
    pieces = pieces.with_columns(pl.col("shard").cast(pl.String)).sort(*DOCUMENT, "start")
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in DOCUMENT)
    pieces = pieces.with_columns(due=pl.when(same).then(pl.col("end").shift(1)).otherwise(0).fill_null(0))
    wrong = pl.col("start") < pl.col("due") if continues else pl.col("start") != pl.col("due")
    return pieces.filter(wrong).select(*DOCUMENT, "start", "due")


def frame_gaps(documents: pl.DataFrame, *, continues: bool) -> pl.DataFrame:
    """Return the stretches of split clips that don't begin at the frame where the one before ended; as `piece_gaps`."""
    clips = documents.filter(pl.col("frames") > 0).select(*DOCUMENT, "frames").unique()
    clips = clips.with_columns(pl.col("shard").cast(pl.String)).sort(*DOCUMENT)
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in DOCUMENT[:3])
    behind = (pl.col("frame") + pl.col("frames")).shift(1)
    clips = clips.with_columns(start=pl.col("frame"), due=pl.when(same).then(behind).otherwise(0).fill_null(0))
    wrong = pl.col("start") < pl.col("due") if continues else pl.col("start") != pl.col("due")
    return clips.filter(wrong).select(*DOCUMENT, "start", "due")


def told_gap(row: Mapping[str, Any], what: str) -> str:
    """Say what is wrong with one row of `piece_gaps` (`id`) or `frame_gaps` (`frame`)."""
    twice = row["start"] < row["due"]
    at = row["start"] if twice else row["due"]
    again = f", repetition {row['repetition']}" if row["repetition"] else ""
    return f"sample {row['sample']} of {row['shard']}{again}: {what} {at} is {'there twice' if twice else 'missing'}"


def _row_faults(documents: pl.DataFrame, expected: Expected) -> Iterator[str]:
    """Compare each document with what the plan knows: its shard, its row of the index, its template, its weight."""
    short = documents.filter(pl.col("length") < 1)
    for pack, slot, length in short.select("pack", "slot", "length").rows():
        yield f"pack {pack}, slot {slot}: a document of {length} ids"
    rows = documents.select("pack", "slot", pl.col("source", "shard", "template").cast(pl.String), "sample",
                            "length", "weight")  # fmt: skip
    rows = rows.join(expected.shards, on="shard", how="left", suffix="_known", maintain_order="left")
    for shard in rows.filter(pl.col("source_known").is_null())["shard"].unique().sort():
        yield f"reads {shard}, which shards.parquet does not name"
    for shard, source in (
        rows.filter(pl.col("source") != pl.col("source_known")).select("shard", "source").unique().rows()
    ):
        yield f"{shard} is not of the source {source}"
    beyond = rows.filter((pl.col("sample") < 0) | (pl.col("sample") >= pl.col("num_rows")))
    for pack, slot, shard, sample, number in beyond.select("pack", "slot", "shard", "sample", "num_rows").rows():
        yield f"pack {pack}, slot {slot}: sample {sample} of {shard}, whose index has {number:,} rows"
    if expected.templates is not None:
        for name in sorted(set(rows["template"].unique()) - expected.templates):
            yield f"has documents of template {name!r}; there are {', '.join(sorted(expected.templates))}"
    most = pl.col("length") * expected.most_weight * (1 + _WEIGHT_SHARE)
    for pack, slot, weight in (
        rows.filter(~pl.col("weight").is_between(0, most)).select("pack", "slot", "weight").rows()
    ):
        yield f"pack {pack}, slot {slot}: weighs {weight:g}, more or less than its ids can"


def _pack_faults(
    documents: pl.DataFrame, packs: pl.DataFrame, starts: NDArray[np.int64], context: int
) -> Iterator[str]:
    """Add up every pack's documents and compare with its own row."""
    if not len(starts):
        return
    lengths = documents["length"].to_numpy().astype(np.int64)
    tokens, squares = np.add.reduceat(lengths, starts), np.add.reduceat(lengths * lengths, starts)
    for pack in np.flatnonzero(tokens > context):
        yield f"pack {pack} holds {tokens[pack]} ids, the context is {context}"
    for name, found in (("tokens", tokens), ("squares", squares)):
        told = packs[name].to_numpy()
        for pack in np.flatnonzero(found != told):
            yield f"pack {pack}: {name} of its documents are {found[pack]}, its own table says {told[pack]}"
    weights = np.add.reduceat(documents["weight"].to_numpy().astype(np.float64), starts)
    told = packs["weight"].to_numpy()
    for pack in np.flatnonzero(np.abs(weights - told) > _WEIGHT_SHARE * np.maximum(1.0, np.abs(told))):
        yield f"pack {pack}: its documents weigh {weights[pack]:g}, its own table says {told[pack]:g}"
