"""What a window's commit record counts beside its packs: documents and ids by source and modality, losses by source.

Totals are added up over windows, so a plan's description reads records and no table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.named_tables import NamedTable
from tokenmill.pipelines.packing_bound import fewest_packs
from tokenmill.pipelines.plan_drawn import Drawn, Refused
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings

MODALITIES = ("image", "video", "text", "document", "other")


def modalities_of(index: NamedTable) -> NDArray[np.int64]:
    """Return the modality of every row of an index, a place in MODALITIES, int64 (rows,)."""
    (found,) = index.codes(["modality"])
    names = found.dictionary.to_pylist()
    places = np.array([MODALITIES.index(name if name in MODALITIES else "other") for name in names] or [4], np.int64)
    codes: NDArray[np.int64] = found.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return places[codes]


def source_totals(source: str, rows: int, refused: Refused) -> Counter[str]:
    """Count the samples of one pass: all, those that gave documents, those left out by reason."""
    lost = refused.dropped + refused.failed
    totals = Counter({f"source.{source}.rows": rows, f"source.{source}.samples": rows - lost.total()})
    totals.update({f"source.{source}.dropped.{reason}": number for reason, number in lost.items()})
    return totals


def document_totals(
    drawn: Drawn, modality: NDArray[np.int64], shards: Sequence[ShardPass], settings: PlanSettings
) -> Counter[str]:
    """Count documents by source and modality; `packs_bound` are the packs that any packing needs at least.

    `longest` is no sum: a plan's is the largest of its windows'.
    """
    totals = Counter({
        "longest": int((drawn.length + drawn.start).max(initial=0)),
        "packs_bound": fewest_packs(drawn.length, drawn.cuttable, settings.context) if len(drawn) else 0,
    })  # fmt: skip
    for shard, number in zip(shards, np.bincount(drawn.shard, minlength=len(shards)).tolist(), strict=True):
        totals[f"source.{shard.source}.documents"] += number
    for place, name in enumerate(MODALITIES):
        if (modality == place).any():
            totals[f"modality.{name}.documents"] = int((modality == place).sum())
            totals[f"modality.{name}.tokens"] = int(drawn.length[modality == place].sum())
    return totals
