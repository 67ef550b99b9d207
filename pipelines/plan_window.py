"""One window of a plan: its documents drawn, packed and shuffled. Reads indexes, writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from tokenmill.errors import ManifestError, SampleError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.plans import read_named_table
from tokenmill.manifests.records import Counts
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.packing import pack
from tokenmill.pipelines.plan_continue_documents import Carried, Carrying
from tokenmill.pipelines.plan_continue_windows import in_part
from tokenmill.pipelines.plan_documents import Drawer
from tokenmill.pipelines.plan_tables import Drawn, PlannedWindow, window_tables
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
    """Draw, pack and shuffle the documents of one window; reads its indexes, writes nothing."""
    draws = _Draws()
    carried = 0
    for one in window.carried if carrying is not None else ():
        carried += draws.add_carried(carrying.documents(one))
    for shard in window.shards:
        drawer = Drawer(plan_id=folder.config.digest, source=shard.source, settings=settings, vocabulary=vocabulary,
                        repetition=shard.repetition, share=shard.share, had=shard.had)  # fmt: skip
        rows = read_named_table(folder.store, shard.index, ["key", "modality", "segments"])
        draws.add(shard, drawer, rows, carrying.seen_of(shard) if carrying is not None else frozenset())
    lengths = [document.length for _, document in draws.drawn]
    cuttable = [document.cuttable for _, document in draws.drawn]
    packs = pack(lengths, cuttable, settings.context, settings.min_piece)
    order = _shuffled(len(packs), folder.config.digest, window.unit)
    counts = Counts(rows_in=draws.rows_in, kept=draws.kept, out=len(packs), dropped=draws.reasons, failed=draws.failed)
    planned = window_tables([packs[number] for number in order], draws.drawn, draws.left_out, counts, settings)
    return replace(planned, totals={**planned.totals, "carried_documents": carried}) if carrying else planned


_UNREMARKABLE = (
    "held_out",
    "training",
    "not_drawn",
    "seen",
)  # what the recipe asked for: counted, but not listed by sample


@dataclass
class _Draws:
    """The documents of a window, and the samples that gave none."""

    drawn: list[Drawn] = field(default_factory=list)
    left_out: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0
    kept: int = 0

    def add_carried(self, carried: Carried) -> int:
        """Take over documents of the plan before; returns how many."""
        self.drawn += carried.drawn
        self.left_out += carried.left_out
        self.reasons.update(carried.reasons)
        self.rows_in += carried.rows_in
        self.kept += len(carried.drawn)
        return len(carried.drawn)

    def add(self, shard: ShardPass, drawer: Drawer, rows: pl.DataFrame, seen: frozenset[int]) -> None:
        chosen = in_part(np.arange(len(rows)), shard.part, shard.parts)
        for sample, row in enumerate(rows.iter_rows(named=True)):
            if row["segments"] is None or not chosen[sample]:  # failed to tokenize: counted there, never a document
                continue
            self.rows_in += 1
            try:
                if sample in seen:
                    raise SampleError("seen", "was trained on before this plan")
                self.drawn += [(shard, document) for document in drawer.documents(sample, row)]
                self.kept += 1
            except SampleError as error:
                self.reasons[error.reason] += 1
                if error.reason not in _UNREMARKABLE:
                    self._leave_out(shard, sample, row["key"], error.reason, error.message)
            except (ManifestError, ValueError) as error:
                self.failed["bad_segments"] += 1
                self._leave_out(shard, sample, row["key"], "bad_segments", str(error)[:200])

    def _leave_out(self, shard: ShardPass, sample: int, key: str, reason: str, message: str) -> None:
        self.left_out.append((shard.source, shard.archive, sample, key, reason, message))


def _shuffled(count: int, plan_id: str, unit: str) -> list[int]:
    """Give a random order of `count` packs that depends on the plan and the window alone."""
    seed = int(digest_of([plan_id, unit, "packs"])[:16], 16)
    return [int(number) for number in np.random.default_rng(seed).permutation(count)]
