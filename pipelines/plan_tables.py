"""The tables of one planned window: its documents in their places, what each pack costs, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.manifests.plans import DOCUMENT_COLUMNS, DROPPED_COLUMNS
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.packing import Packs
from tokenmill.pipelines.plan_drawn import Drawn
from tokenmill.pipelines.plan_kernels import count_losses
from tokenmill.pipelines.plan_templates import TEMPLATE_NAMES
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.layouts import LOSS_TEXT, LOSS_VISION

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWindow:
    """What planning a window gives: its tables, and what became of its samples."""

    documents: pa.Table
    packs: pa.Table
    dropped: pa.Table
    counts: Counts
    totals: Mapping[str, int]


def window_tables(
    packs: Packs,
    drawn: Drawn,
    shards: Sequence[ShardPass],
    dropped: Sequence[tuple[Any, ...]],
    counts: Counts,
    settings: PlanSettings,
) -> PlannedWindow:
    """Lay a window's packs out as rows; `drawn` is what the packs' document numbers mean, `shards` its passes."""
    losses = count_losses(
        drawn.layout[packs.document], packs.start, packs.length, drawn.offsets, drawn.span_length, drawn.span_loss
    )
    weight = losses[:, LOSS_TEXT] * settings.text_weight + losses[:, LOSS_VISION] * settings.vision_weight
    return PlannedWindow(
        documents=_documents(packs, drawn, shards, weight),
        packs=_packs(packs, weight),
        dropped=pl.DataFrame(list(dropped), schema=dict(DROPPED_COLUMNS), orient="row").to_arrow(),
        counts=counts,
        totals=_totals(packs, drawn, shards, losses),
    )


def _documents(packs: Packs, drawn: Drawn, shards: Sequence[ShardPass], weight: NDArray[np.float64]) -> pa.Table:
    import pyarrow as pa

    of = {name: getattr(drawn, name)[packs.document] for name in ("sample", "frame", "frames", "variant")}
    shard = drawn.shard[packs.document]
    columns = of | {
        "pack": packs.pack,
        "slot": packs.slot,
        "source": _coded(shard, [one.source for one in shards]),
        "shard": _coded(shard, [one.archive for one in shards]),
        "repetition": np.array([one.repetition for one in shards], np.int32)[shard],
        "start": drawn.start[packs.document] + packs.start,
        "length": packs.length,
        "template": _coded(drawn.template[packs.document], TEMPLATE_NAMES),
        "weight": weight.astype(np.float32),
    }
    return pa.table({name: columns[name] for name in DOCUMENT_COLUMNS})


def _coded(places: NDArray[np.integer[Any]], names: Sequence[str]) -> pa.DictionaryArray:
    """Give names as codes into the distinct ones, in the order in which they stand in `names`."""
    import pyarrow as pa

    codes: dict[str, int] = {}
    code = np.array([codes.setdefault(name, len(codes)) for name in names], np.int32)
    return pa.DictionaryArray.from_arrays(code[places], pa.array(list(codes), pa.large_string()))


def _packs(packs: Packs, weight: NDArray[np.float64]) -> pa.Table:
    import pyarrow as pa

    weights = np.add.reduceat(weight, packs.offsets[:-1]) if len(packs) else weight  # no pack is empty
    return pa.table(
        {
            "pack": np.arange(len(packs), dtype=np.int32),
            "documents": np.diff(packs.offsets).astype(np.int32),
            "tokens": packs.tokens,
            "squares": packs.squares,
            "weight": weights,
        }
    )


def _totals(packs: Packs, drawn: Drawn, shards: Sequence[ShardPass], losses: NDArray[np.int64]) -> dict[str, int]:
    template, shard = drawn.template[packs.document], drawn.shard[packs.document]
    is_first, is_pair = packs.start == 0, drawn.split[packs.document] > 0
    totals = Counter({
        "tokens": int(packs.length.sum(dtype=np.int64)),
        "text_tokens": int(losses[:, LOSS_TEXT].sum()),
        "vision_tokens": int(losses[:, LOSS_VISION].sum()),
        "pieces": len(is_first),
        "cut_documents": int((is_first & (packs.length < drawn.length[packs.document]) & ~is_pair).sum()),
        "packs": len(packs),
        "documents": len(drawn),
        **({"pairs": int((drawn.split > 0).sum())} if is_pair.any() else {}),
    })  # fmt: skip
    for number, tokens in enumerate(_sums(shard, packs.length, len(shards))):
        totals[f"source.{shards[number].source}.tokens"] += tokens
    documents = _sums(template, is_first, len(TEMPLATE_NAMES))
    for number, tokens in enumerate(_sums(template, packs.length, len(TEMPLATE_NAMES))):
        if tokens:
            totals[f"template.{TEMPLATE_NAMES[number]}.documents"] += documents[number]
            totals[f"template.{TEMPLATE_NAMES[number]}.tokens"] += tokens
    return dict(sorted(totals.items()))


def _sums(groups: NDArray[np.integer[Any]], values: NDArray[Any], count: int) -> list[int]:
    """Sum values by group; exact below 2^53, which is far above the ids of a window."""
    sums = np.bincount(groups, weights=values, minlength=count)
    return [int(one) for one in sums]
