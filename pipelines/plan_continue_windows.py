"""The windows of a plan that continues another: the passes the old one did not have, and what it did not finish.

Both are spread over all windows in proportion, so that new data comes in evenly from the first step on. Where there are
fewer of one kind than windows, they are taken in parts of at most 8, since every part reads its index again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.plan_border import SAME_SHARD, Border
from tokenmill.manifests.plans import PLAN_SCHEMA
from tokenmill.manifests.stagedir import StageDir, table_bytes
from tokenmill.pipelines.plan_carried import SEEN, CarriedWindow
from tokenmill.pipelines.plan_continue_seen import seen_samples
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.pipelines.plan_windows import ShardPass, Window
from tokenmill.settings_train import PlanSettings

MOST_PARTS = 8


Item = ShardPass | CarriedWindow
T = TypeVar("T", ShardPass, CarriedWindow)


def prepare_windows(
    folder: StageDir,
    border: Border,
    shards: pl.DataFrame,
    passes: Sequence[ShardPass],
    settings: PlanSettings,
    *,
    write: bool,
) -> list[Window]:
    """Return the windows of a plan that goes on from a border; writes what their units look up, if it may.

    `shards` and `passes` are all that the recipe asks for; what the plan before had of them is not planned again.
    """
    same = border.plan.shards.join(shards, on=SAME_SHARD, how="semi")
    fresh = fresh_passes(passes, dict(same.select("shard", "epochs").iter_rows()))
    if write and not folder.store.exists(folder.at(SEEN)):
        folder.describe()  # so that verify and gc know an unfinished plan in what a kill leaves
        seen = seen_samples(border, shards, fresh)
        folder.store.put(folder.at("shards.parquet"), table_bytes(shards, PLAN_SCHEMA))
        folder.store.put(folder.at(SEEN), table_bytes(seen, PLAN_SCHEMA))
        fault_point("plan:after-seen")
    return spread_windows(folder.config.digest, fresh, carried_windows(border), settings)


def fresh_passes(wanted: Iterable[ShardPass], had: Mapping[str, float]) -> list[ShardPass]:
    """Return the passes, or shares of passes, that a plan asks for beyond the epochs that each shard `had`."""
    fresh = []
    for shard in wanted:
        before = min(1.0, max(0.0, had.get(shard.archive, 0.0) - shard.repetition))
        if shard.share > before:
            fresh.append(replace(shard, had=before))
    return fresh


def carried_windows(border: Border) -> list[CarriedWindow]:
    """Return the windows of a plan of which something remains, in their order."""
    plan, about = border.plan, border.plan.description
    a_pack = about["totals"]["documents"] / max(1, about["num_packs"])
    found = []
    for number, row in enumerate(plan.windows.iter_rows(named=True)):
        first = max(0, border.first_pack - row["first_pack"])
        if first < row["num_packs"]:
            table = plan.folder.at(row["documents"])
            found.append(
                CarriedWindow(
                    number=number,
                    table=table,
                    digest=digest_of([plan.plan_id, table, row["packs"]]),
                    first_pack=first,
                    num_packs=row["num_packs"],
                    num_documents=(row["num_packs"] - first) * a_pack,
                    num_ids=(row["num_packs"] - first) * plan.context,
                )
            )
    return found


def spread_windows(
    plan_id: str, fresh: Sequence[ShardPass], carried: Sequence[CarriedWindow], settings: PlanSettings
) -> list[Window]:
    """Group passes and windows so that each new window has its share of both; a pure function of its arguments."""
    shuffled = sorted(fresh, key=lambda one: (uniform(plan_id, "shard", one.archive, str(one.repetition)), one.archive))
    count = _num_windows([*fresh, *carried], settings)
    groups: dict[int, list[Item]] = {}
    for place, item in [*_placed(_in_parts(shuffled, count)), *_placed(_in_parts(carried, count))]:
        groups.setdefault(int(place * count), []).append(item)
    return [_window(number, groups[place]) for number, place in enumerate(sorted(groups))]


def num_documents(item: Item) -> float:
    """Tell about how many documents a pass or a window gives."""
    if isinstance(item, CarriedWindow):
        return item.num_documents / item.parts
    return item.num_samples * (item.share - item.had) / item.parts


def _num_windows(items: Sequence[Item], settings: PlanSettings) -> int:
    """Say how many windows have on average as many documents and, where records tell their ids, packs as asked."""
    full = sum(map(num_documents, items)) / settings.window_documents
    if all(item.num_ids is not None for item in items):
        ids = sum(
            (item.num_ids or 0) * (1.0 if isinstance(item, CarriedWindow) else item.share - item.had) for item in items
        )
        full = min(full, ids / settings.context / settings.window_packs)
    return max(1, int(full))


def _in_parts(items: Sequence[T], count: int) -> list[T]:
    parts = min(MOST_PARTS, -(-count // len(items))) if items else 1
    return [replace(item, part=part, parts=parts) for item in items for part in range(parts)]


def _placed(items: Sequence[T]) -> list[tuple[float, Item]]:
    """Give every item the middle of its place on a line from 0 to 1 that all of its kind share by their documents."""
    sizes = np.array([num_documents(item) for item in items])
    middles = (np.cumsum(sizes) - sizes / 2) / max(float(sizes.sum()), 1e-9)
    return list(zip(middles.tolist(), items, strict=True))


def _window(number: int, items: Sequence[Item]) -> Window:
    return Window(
        number=number,
        shards=tuple(item for item in items if isinstance(item, ShardPass)),
        carried=tuple(item for item in items if isinstance(item, CarriedWindow)),
    )
