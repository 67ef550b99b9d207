"""One window of a plan: its documents drawn, packed and shuffled. Reads indexes, writes nothing.

Everything is arrays over the window's documents or pieces, so a window of 100,000 documents takes a third of a second
and some 30 MB, and a plan of any size no more than its windows do that are being planned at the same time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.named_tables import NamedTable, open_named_table
from tokenmill.manifests.records import Counts
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.packing import pack
from tokenmill.pipelines.plan_carried import CARRIED
from tokenmill.pipelines.plan_continue_documents import Carried, Carrying, numbered
from tokenmill.pipelines.plan_documents import draw_pass
from tokenmill.pipelines.plan_drawn import Drawn, Refused, drawn_from, joined
from tokenmill.pipelines.plan_exclusion import Exclusion, exclusion_in
from tokenmill.pipelines.plan_tables import PlannedWindow, window_tables
from tokenmill.pipelines.plan_totals import document_totals, modalities_of, source_totals
from tokenmill.pipelines.plan_windows import ShardPass, Window
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import Vocabulary


def plan_window(
    folder: StageDir,
    window: Window,
    settings: PlanSettings,
    vocabulary: Vocabulary,
    carrying: Carrying | None = None,
) -> PlannedWindow:
    """Draw, pack and shuffle the documents of one window; reads its indexes, writes nothing.

    `carrying` is what a plan that continues another looks up.
    """
    draws = _Draws(exclusion=exclusion_in(folder))
    for shard in window.shards:
        seen = None if carrying is None else carrying.seen.of(shard)
        draws.add(shard, open_named_table(folder.store, shard.index), settings, vocabulary, seen)
    if carrying is not None:
        for one in window.carried:
            draws.take_over(carrying.taken_over(one))
    drawn = joined(draws.drawn or [drawn_from([])])  # of a window whose shards all left, nothing is
    packs = pack(drawn.length, drawn.cuttable, settings.context, settings.min_piece)
    packs = packs.split(drawn.split).reordered(_order(len(packs), folder.config.digest, window.unit))
    counts = Counts(rows_in=draws.rows_in, kept=draws.rows_in - draws.dropped.total() - draws.failed.total(),
                    out=len(packs), dropped=draws.dropped, failed=draws.failed)  # fmt: skip
    planned = window_tables(packs, drawn, draws.passes, draws.left_out, counts, settings)
    totals = {**planned.totals, **document_totals(drawn, draws.modality, draws.passes, settings)}
    for name, number in draws.totals.items():
        totals[name] = totals.get(name, 0) + number
    return replace(planned, totals=dict(sorted(totals.items())))


@dataclass(kw_only=True)
class _Draws:
    """The documents of a window, and the samples that gave none."""

    drawn: list[Drawn] = field(default_factory=list)
    left_out: list[tuple[Any, ...]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0
    passes: list[ShardPass] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    modalities: list[NDArray[np.int64]] = field(default_factory=list)
    exclusion: Exclusion

    @property
    def modality(self) -> NDArray[np.int64]:
        """Each document's modality, a place in MODALITIES, int64 (D,)."""
        return np.concatenate([np.empty(0, np.int64), *self.modalities])

    def add(
        self,
        shard: ShardPass,
        index: NamedTable,
        settings: PlanSettings,
        vocabulary: Vocabulary,
        seen: NDArray[np.integer[Any]] | None,
    ) -> None:
        drawn, refused, rows_in = draw_pass(index, shard, settings, vocabulary, self.exclusion, seen)
        self.drawn.append(replace(drawn, shard=np.full(len(drawn), len(self.passes), np.int32)))
        self.passes.append(shard)
        self.rows_in += rows_in
        self.dropped += refused.dropped
        self.failed += refused.failed
        self.totals.update(source_totals(shard.source, rows_in, refused))
        self.modalities.append(modalities_of(index)[drawn.sample])
        if refused.listed:
            self._list(shard, index, refused)

    def take_over(self, carried: Carried) -> None:
        """Add documents of the plan before."""
        self.drawn += numbered(carried, len(self.passes))
        self.passes += carried.passes
        self.left_out += carried.left_out
        self.dropped += carried.dropped
        self.failed += carried.failed
        self.rows_in += carried.rows_in
        self.totals.update(carried.totals)
        self.totals[CARRIED] += sum(map(len, carried.drawn))
        self.modalities += carried.modalities

    def _list(self, shard: ShardPass, index: NamedTable, refused: Refused) -> None:
        keys = index.frame(["key"])["key"]
        for row, reason, message in sorted(refused.listed):
            self.left_out.append((shard.source, shard.archive, row, keys[row], reason, message))


def _order(count: int, plan_id: str, unit: str) -> NDArray[np.int64]:
    """Give a random order of `count` packs that depends on the plan and the window alone."""
    seed = int(digest_of([plan_id, unit, "packs"])[:16], 16)
    return np.random.default_rng(seed).permutation(count)
