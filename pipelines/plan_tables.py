"""The tables of one planned window: its documents in their places, what each pack costs, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.manifests.plans import DOCUMENT_COLUMNS, DROPPED_COLUMNS, PACK_COLUMNS
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.plan_drawn import Drawn
from tokenmill.pipelines.plan_kernels import count_losses
from tokenmill.pipelines.plan_templates import TEMPLATE_NAMES
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.layouts import LOSS_TEXT, LOSS_VISION

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The packs of a window, int64: pieces [offsets[p], offsets[p + 1]) are those of pack p, in their slots' order.

    A piece is ids [start, start + length) of a document, given by its number in the window.
    """

    offsets: NDArray[np.int64]
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWindow:
    """What planning a window gives: its tables, and what became of its samples."""

    documents: pa.Table
    packs: pa.Table
    dropped: pa.Table
    counts: Counts
    totals: Mapping[str, int]


def window_tables(
    pieces: Pieces,
    drawn: Drawn,
    shards: Sequence[ShardPass],
    dropped: Sequence[tuple[Any, ...]],
    counts: Counts,
    settings: PlanSettings,
) -> PlannedWindow:
    """Lay a window's packs out as rows; `drawn` is what the pieces' document numbers mean, `shards` its passes."""
    losses = count_losses(drawn.layout[pieces.document], pieces.start, pieces.length, drawn.offsets, drawn.span_length,
                          drawn.span_loss)  # fmt: skip
    weight = losses[:, LOSS_TEXT] * settings.text_weight + losses[:, LOSS_VISION] * settings.vision_weight
    return PlannedWindow(
        documents=_documents(pieces, drawn, shards, weight),
        packs=_packs(pieces, weight),
        dropped=pl.DataFrame(list(dropped), schema=dict(DROPPED_COLUMNS), orient="row").to_arrow(),
        counts=counts,
        totals=_totals(pieces, drawn, shards, losses),
    )


def _documents(pieces: Pieces, drawn: Drawn, shards: Sequence[ShardPass], weight: NDArray[np.float64]) -> pa.Table:
    import pyarrow as pa

    sizes = np.diff(pieces.offsets)
    of = {name: getattr(drawn, name)[pieces.document] for name in ("sample", "frame", "frames", "variant")}
    shard = drawn.shard[pieces.document]
    columns = of | {
        "pack": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        "slot": (np.arange(len(shard)) - np.repeat(pieces.offsets[:-1], sizes)).astype(np.int32),
        "source": _coded(shard, [one.source for one in shards]),
        "shard": _coded(shard, [one.archive for one in shards]),
        "repetition": np.array([one.repetition for one in shards], np.int32)[shard],
        "start": (drawn.start[pieces.document] + pieces.start).astype(np.int32),
        "length": pieces.length.astype(np.int32),
        "template": _coded(drawn.template[pieces.document], TEMPLATE_NAMES),
        "weight": weight.astype(np.float32),
    }
    return pa.table({name: columns[name] for name in DOCUMENT_COLUMNS})


def _coded(places: NDArray[np.integer[Any]], names: Sequence[str]) -> pa.DictionaryArray:
    """Give names as codes into the distinct ones, in the order in which they stand in `names`."""
    import pyarrow as pa

    distinct = list(dict.fromkeys(names))
    code = np.array([distinct.index(name) for name in names], np.int32)
    return pa.DictionaryArray.from_arrays(code[places], pa.array(distinct, pa.large_string()))


def _packs(pieces: Pieces, weight: NDArray[np.float64]) -> pa.Table:
    import pyarrow as pa

    sizes, starts = np.diff(pieces.offsets), pieces.offsets[:-1]
    if not len(sizes):
        return pl.DataFrame(schema=dict(PACK_COLUMNS)).to_arrow()
    return pa.table(
        {
            "pack": np.arange(len(sizes), dtype=np.int32),
            "documents": sizes.astype(np.int32),
            "tokens": np.add.reduceat(pieces.length, starts),
            "squares": np.add.reduceat(pieces.length * pieces.length, starts),
            "weight": np.add.reduceat(weight, starts),
        }
    )


def _totals(pieces: Pieces, drawn: Drawn, shards: Sequence[ShardPass], losses: NDArray[np.int64]) -> dict[str, int]:
    template, shard = drawn.template[pieces.document], drawn.shard[pieces.document]
    is_first = pieces.start == 0
    totals = Counter({
        "tokens": int(pieces.length.sum()),
        "text_tokens": int(losses[:, LOSS_TEXT].sum()),
        "vision_tokens": int(losses[:, LOSS_VISION].sum()),
        "pieces": len(is_first),
        "cut_documents": int((is_first & (pieces.length < drawn.length[pieces.document])).sum()),
        "packs": len(pieces.offsets) - 1,
        "documents": len(drawn),
    })  # fmt: skip
    for number, tokens in enumerate(_sums(shard, pieces.length, len(shards))):
        totals[f"source.{shards[number].source}.tokens"] += tokens
    documents = _sums(template, is_first, len(TEMPLATE_NAMES))
    for number, tokens in enumerate(_sums(template, pieces.length, len(TEMPLATE_NAMES))):
        if tokens:
            totals[f"template.{TEMPLATE_NAMES[number]}.documents"] += documents[number]
            totals[f"template.{TEMPLATE_NAMES[number]}.tokens"] += tokens
    return dict(sorted(totals.items()))


def _sums(groups: NDArray[np.integer[Any]], values: NDArray[Any], count: int) -> list[int]:
    """Sum values by group; exact below 2^53, which is far above the ids of a window."""
    sums = np.bincount(groups, weights=values, minlength=count)
    return [int(one) for one in sums]
