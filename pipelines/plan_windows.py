"""Which shards are planned together, in which order: the units of the plan stage.

Only whole shards are shuffled, and inside a window everything; with shards of 10,000 samples and windows of 20,000
documents two neighbours in a shard still meet in one window, which is what keeps a window's reads few. The passes over
each source are spread evenly along the plan, so a window's mix is the plan's to within about a shard of each source:
a source of one shard in a hundred windows is in one of them, and plan.json says how far windows are off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.records import Commit, InputRef, unit_name
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.plan_carried import CarriedWindow
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.settings_train import PlanSettings

_MOST_PASSES = 10_000_000  # some 5 GB, and minutes to put in order


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPass:
    """One pass over one tokenized shard; `share` < 1 takes a random part of its samples.

    `num_ids` are its codes and text ids, None where its record does not say. In a plan that continues another, `had` is
    the share that was planned before, and part `part` of `parts` is taken.
    """

    source: str
    archive: str
    index: str
    digest: str
    repetition: int
    share: float
    num_samples: int
    num_ids: int | None = None
    had: float = 0.0
    part: int = 0
    parts: int = 1

    @property
    def reference(self) -> InputRef:
        here = self.repetition
        is_whole = not self.had and self.parts == 1
        digest = self.digest if is_whole else digest_of([self.digest, self.had, self.part, self.parts])
        return InputRef(name=self.archive, digest=digest, start=here, end=here + 1, unit_of_range="passes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A unit of the plan stage."""

    number: int
    shards: tuple[ShardPass, ...]
    carried: tuple[CarriedWindow, ...] = ()

    @property
    def inputs(self) -> tuple[InputRef, ...]:
        return (*(one.reference for one in self.shards), *(one.reference for one in self.carried))

    @property
    def unit(self) -> str:
        return unit_name(self.inputs)


def windows_of(
    plan_id: str,
    snapshots: Sequence[Snapshot],
    settings: PlanSettings,
    epochs: Mapping[str, float] | None = None,
) -> list[Window]:
    """Order the passes over all shards and group them; a pure function of its arguments.

    `epochs` say how often each source is gone through (`plan_mix` finds them); None: what `plan.mix` says in epochs.
    """
    taken = fixed_epochs(snapshots, settings) if epochs is None else epochs
    passes = _interleaved(plan_id, [list(_passes(one, taken[one.folder.source])) for one in snapshots])
    return [Window(number=number, shards=tuple(group)) for number, group in enumerate(_grouped(passes, settings))]


def fixed_epochs(snapshots: Sequence[Snapshot], settings: PlanSettings) -> dict[str, float]:
    """Say how often each source is gone through, where the mix is one of epochs; raises ValueError for shares."""
    found = {}
    for source in (snapshot.folder.source for snapshot in snapshots):
        said = settings.of_source(source)
        if said.share is not None:
            raise ValueError(f"epochs of {source} follow from its share; ask plan_mix")
        found[source] = 1.0 if said.epochs is None else said.epochs
    return found


def passes_of(snapshots: Sequence[Snapshot], epochs: Mapping[str, float]) -> list[ShardPass]:
    """List all passes that a plan asks for, in the order of the snapshots; `epochs` are those of each source."""
    return [one for snapshot in snapshots for one in _passes(snapshot, epochs[snapshot.folder.source])]


def check_sources(snapshots: Sequence[Snapshot], settings: PlanSettings) -> None:
    """Refuse a mix of sources that have no tokens, that come twice or are not named; raises RecipeError."""
    sources = [snapshot.folder.source for snapshot in snapshots]
    told = f"tokenized sources are {', '.join(sources) or 'none'}"
    if not sources or len(set(sources)) != len(sources):
        raise RecipeError(f"plan: needs sources, each once; {told}")
    for source in sorted(set(settings.mix) - set(sources)):
        if settings.of_source(source).is_taken:
            hint = "tokenmill status says what became of it; take it out of the mix, or give it 0"
            raise RecipeError(f"plan.mix.{source}: nothing of it is tokenized; {told}; {hint}")
    unnamed = [source for source in sources if source not in settings.mix]
    if settings.has_shares and unnamed:
        raise RecipeError(f"plan.mix: has shares, so every source needs share or epochs; missing: {', '.join(unnamed)}")


def check_passes(snapshots: Sequence[Snapshot], epochs: Mapping[str, float]) -> None:
    """Refuse a mix whose passes alone would fill the memory: somebody took epochs for samples; raises RecipeError."""
    passes = {s.folder.source: math.ceil(epochs[s.folder.source]) * len(s.commits) for s in snapshots}
    if sum(passes.values()) > _MOST_PASSES:
        most = max(passes, key=lambda source: passes[source])
        raise RecipeError(
            f"plan.mix.{most}: {epochs[most]:,g} epochs are {passes[most]:,} passes over shards, and a plan has "
            f"{_MOST_PASSES:,} at most; it says how often a source is gone through, not how many samples are taken"
        )


def ids_of(commit: Commit) -> int | None:
    """Return the codes and text ids of a tokenized shard; None where its record does not tell."""
    ids = [commit.totals[name] for name in ("codes", "text_ids") if name in commit.totals]
    return sum(ids) if ids else None


def _passes(snapshot: Snapshot, epochs: float) -> Iterator[ShardPass]:
    """List the passes over a source's shards: 2.5 epochs are two whole passes and one that takes half."""
    if not epochs:
        return
    for commit in snapshot.commits:
        archive, digest = snapshot.folder.at(commit.data.name), digest_of([commit.data.sha256, commit.rows.sha256])
        for repetition in range(math.ceil(epochs)):
            yield ShardPass(
                source=snapshot.folder.source,
                archive=archive,
                index=snapshot.folder.at(commit.rows.name),
                digest=digest,
                repetition=repetition,
                share=min(1.0, epochs - repetition),
                num_samples=commit.counts.out,
                num_ids=ids_of(commit),
            )


def _interleaved(plan_id: str, sources: Sequence[list[ShardPass]]) -> list[ShardPass]:
    """Merge the sources so that each is spread evenly, pass after pass, its shards shuffled anew in each.

    A pass stands where its samples begin to be due, as a share of its source, shifted by a random part of its own size:
    without that the middle of the plan would hold every source of a single shard.
    """
    placed: list[tuple[float, str, ShardPass]] = []
    for passes in sources:
        passes.sort(key=lambda one: (one.repetition, uniform(plan_id, "shard", one.archive, str(one.repetition))))
        weights = np.array([one.num_samples * one.share for one in passes])
        if not weights.sum():
            continue
        shift = uniform(plan_id, "source", passes[0].source)
        places = (np.cumsum(weights) - (1 - shift) * weights) / weights.sum()
        placed += zip(places.tolist(), [one.source for one in passes], passes, strict=True)
    placed.sort(key=lambda found: found[:2])
    return [one for _, _, one in placed]


def _grouped(passes: Sequence[ShardPass], settings: PlanSettings) -> list[list[ShardPass]]:
    """Cut into windows of at least so many documents and packs; what is left and under half of one joins the last."""
    tells_ids = all(one.num_ids is not None for one in passes)
    groups: list[list[ShardPass]] = []
    documents = ids = full = 0.0
    for one in passes:
        if not groups or full >= 1.0:
            groups.append([])
            documents = ids = 0.0
        groups[-1].append(one)
        documents += one.num_samples * one.share
        ids += (one.num_ids or 0) * one.share
        full = documents / settings.window_documents
        if tells_ids:
            full = min(full, ids / settings.context / settings.window_packs)
    if len(groups) > 1 and full < 0.5:
        last = groups.pop()  # first: `groups[-2] += groups.pop()` would store it in the place of another window
        groups[-1] += last
    return groups
