"""Which samples of a shard a plan takes in one pass: its part of the held-out line, none excluded, the pass's share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.manifests.named_tables import NamedTable
from tokenmill.pipelines.plan_drawn import Refused
from tokenmill.pipelines.plan_draws import uniform, uniforms
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings


def wanted_rows(
    rows: NDArray[np.int64], index: NamedTable, shard: ShardPass, settings: PlanSettings, refused: Refused
) -> NDArray[np.int64]:
    """Take those of the rows that the pass wants; keys are only read where the recipe asks for what needs them."""
    if settings.held_out > 0.0 or settings.part == "held_out" or settings.exclude:
        keys = index.frame(["key"])["key"].to_list()
        names = [keys[row] for row in rows.tolist()]
        is_other = np.array([is_of_other_part(shard.source, name, settings) for name in names], np.bool_)
        excluded = frozenset(settings.exclude)
        is_excluded = np.array([name in excluded for name in names], np.bool_)[~is_other]
        other = "training" if settings.part == "held_out" else "held_out"
        rows = refused.without(rows, is_other, SampleError(other, "belongs to the other part"))
        rows = refused.without(rows, is_excluded, SampleError("excluded", "on the list of excluded keys"))
    if shard.share < 1.0 and len(rows):
        draws = pass_draws(int(rows[-1]) + 1, shard, settings, "share")[rows]
        told = f"this pass takes {shard.share:g} of the source"
        rows = refused.without(rows, draws >= shard.share, SampleError("not_drawn", told))
    return rows


def is_of_other_part(source: str, key: str, settings: PlanSettings) -> bool:
    is_held_out = uniform("held out", f"{source}/{key}") < settings.held_out
    return is_held_out != (settings.part == "held_out")


def pass_draws(count: int, shard: ShardPass, settings: PlanSettings, what: str) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each of the first rows of a shard, anew in each pass over it."""
    return uniforms(count, str(settings.seed), shard.archive, shard.digest, str(shard.repetition), what)
