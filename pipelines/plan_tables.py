"""The tables of one planned window: its documents in their places, what each pack costs, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.manifests.plans import DOCUMENT_COLUMNS, DROPPED_COLUMNS, PACK_COLUMNS
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.packing import Piece
from tokenmill.pipelines.plan_spans import Document, piece_weights
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.templates import LossClass

Drawn = tuple[ShardPass, Document]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWindow:
    """What planning a window gives: its tables, and what became of its samples."""

    documents: pl.DataFrame
    packs: pl.DataFrame
    dropped: pl.DataFrame
    counts: Counts
    totals: Mapping[str, int]


def window_tables(
    packs: Sequence[Sequence[Piece]],
    drawn: Sequence[Drawn],
    dropped: Sequence[tuple[Any, ...]],
    counts: Counts,
    settings: PlanSettings,
) -> PlannedWindow:
    """Lay a window's packs out as rows; `drawn` is what the pieces' document numbers mean."""
    rows: list[tuple[Any, ...]] = []
    costs: list[tuple[Any, ...]] = []
    totals: Counter[str] = Counter()
    for number, pieces in enumerate(packs):
        total_weight = 0.0
        for slot, piece in enumerate(pieces):
            shard, document = drawn[piece.document]
            classes = piece_weights(document.spans, piece.start, piece.length)
            weight = classes["text"] * settings.text_weight + classes["vision"] * settings.vision_weight
            total_weight += weight
            rows.append((number, slot, shard.source, shard.archive, document.sample, shard.repetition, document.frame,
                         document.frames, document.start + piece.start, piece.length, document.template,
                         document.variant, weight))  # fmt: skip
            totals.update(_piece_totals(shard, document, piece, classes))
        lengths = [piece.length for piece in pieces]
        costs.append((number, len(pieces), sum(lengths), sum(n * n for n in lengths), total_weight))
    totals |= {"packs": len(packs), "documents": len(drawn)}
    return PlannedWindow(
        documents=pl.DataFrame(rows, schema=dict(DOCUMENT_COLUMNS), orient="row"),
        packs=pl.DataFrame(costs, schema=dict(PACK_COLUMNS), orient="row"),
        dropped=pl.DataFrame(list(dropped), schema=dict(DROPPED_COLUMNS), orient="row"),
        counts=counts,
        totals=dict(sorted(totals.items())),
    )


def _piece_totals(
    shard: ShardPass, document: Document, piece: Piece, classes: Mapping[LossClass, int]
) -> dict[str, int]:
    is_first = piece.start == 0
    return {
        "tokens": piece.length,
        "text_tokens": classes["text"],
        "vision_tokens": classes["vision"],
        "pieces": 1,
        "cut_documents": int(is_first and piece.length < document.length),
        f"source.{shard.source}.tokens": piece.length,
        f"template.{document.template}.documents": int(is_first),
        f"template.{document.template}.tokens": piece.length,
    }
