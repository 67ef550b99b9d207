"""Which shards are planned together: the units of the plan stage.

Only whole shards are shuffled, and inside a window everything; with shards of 10,000 samples and windows of 20,000
documents two neighbours in a shard still meet in one window, which is what keeps a window's reads few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.records import InputRef, unit_name
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.settings_train import PlanSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPass:
    """One pass over one tokenized shard; `share` < 1 takes a random part of its samples."""

    source: str
    archive: str
    index: str
    digest: str
    repetition: int
    share: float
    num_samples: int

    @property
    def reference(self) -> InputRef:
        here = self.repetition
        return InputRef(name=self.archive, digest=self.digest, start=here, end=here + 1, unit_of_range="passes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A unit of the plan stage."""

    number: int
    shards: tuple[ShardPass, ...]

    @property
    def inputs(self) -> tuple[InputRef, ...]:
        return tuple(shard.reference for shard in self.shards)

    @property
    def unit(self) -> str:
        return unit_name(self.inputs)


def windows_of(plan_id: str, snapshots: Sequence[Snapshot], settings: PlanSettings) -> list[Window]:
    """Shuffle the passes over all shards and group them; a pure function of the plan and its snapshots."""
    passes = [shard for snapshot in snapshots for shard in _passes(snapshot, settings)]
    passes.sort(key=lambda shard: (uniform(plan_id, "shard", shard.archive, str(shard.repetition)), shard.archive))
    groups: list[list[ShardPass]] = [[]]
    held = 0.0
    for shard in passes:
        if held >= settings.window_documents:
            groups.append([])
            held = 0.0
        groups[-1].append(shard)
        held += shard.num_samples * shard.share
    if len(groups) > 1 and held < settings.window_documents / 2:
        last = groups.pop()  # first: `groups[-2] += groups.pop()` would store it in the place of another window
        groups[-1] += last
    return [Window(number=number, shards=tuple(group)) for number, group in enumerate(groups) if group]


def check_sources(snapshots: Sequence[Snapshot], settings: PlanSettings) -> None:
    """Refuse a mix that names unknown sources, or sources that come twice or not at all; raises RecipeError."""
    sources = [snapshot.folder.source for snapshot in snapshots]
    unknown = sorted(set(settings.mix) - set(sources))
    if not sources or unknown or len(set(sources)) != len(sources):
        raise RecipeError(
            f"plan.mix: names {unknown or 'no source twice'}; tokenized sources are {', '.join(sources) or 'none'}"
        )


def _passes(snapshot: Snapshot, settings: PlanSettings) -> Iterator[ShardPass]:
    """List the passes over a source's shards: 2.5 epochs are two whole passes and one that takes half."""
    epochs = settings.mix.get(snapshot.folder.source, 1.0)
    for commit in snapshot.commits:
        for repetition in range(math.ceil(epochs)):
            yield ShardPass(
                source=snapshot.folder.source,
                archive=snapshot.folder.at(commit.data.name),
                index=snapshot.folder.at(commit.rows.name),
                digest=digest_of([commit.data.sha256, commit.rows.sha256]),
                repetition=repetition,
                share=min(1.0, epochs - repetition),
                num_samples=commit.counts.out,
            )
