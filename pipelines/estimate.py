"""`tokenmill estimate`: a few real units of every source, run for real, and what the whole would take.

The units are spread evenly over each source and go through the recipe's own stages below a scratch folder of its root
(`<root>/scratch-…`, removed afterwards), so reading and writing are those of the real stores and nothing of it can be
taken for a finished stage. Without a cluster in the recipe they run one after the other in this process: what is
measured is one worker alone, on this machine. The figures come from the rows each run logs; see `estimate_figures`.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tokenmill.errors import StorageError
from tokenmill.filters.scorer import is_prepared
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.estimate_figures import Cluster, Pool, SourceSize, StageEstimate, estimate_stages
from tokenmill.pipelines.jobs import StageWork, Unit
from tokenmill.pipelines.pools import stage_pool
from tokenmill.recipe import Recipe

log = logging.getLogger(__name__)
STAGES = (
    "ingest", "split", "score", "decontaminate", "compare", "duplicates", "select", "caption", "choose", "tokenize",
)  # fmt: skip
_IN_THE_DRIVER = ("compare", "duplicates", "select", "choose")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What was measured and what follows from it."""

    units: int
    sources: dict[str, SourceSize]
    stages: list[StageEstimate]
    cluster: Cluster

    def to_json(self) -> dict[str, Any]:
        return {
            "units_a_source": self.units,
            "sources": {name: size.to_json() for name, size in self.sources.items()},
            "stages": [stage.to_json() for stage in self.stages],
            "hours": round(sum(stage.hours for stage in self.stages), 4),
            "cost": _total([stage.cost for stage in self.stages]),
            "bytes_written": sum(stage.bytes_written for stage in self.stages),
        }


def estimate(recipe: Recipe, *, units: int, cluster: Cluster) -> Estimate:
    """Run `units` units of every source through the data stages and extrapolate to the whole recipe.

    Raises:
        RecipeError: the recipe is wrong. RunError and StorageError: as when running it.
    """
    with _scratch(recipe) as (store, root):
        run = recipe.execution.model_copy(update={"executor": "ray" if recipe.execution.address else "inline"})
        sampled = recipe.model_copy(update={"root": root, "execution": run})
        chain = _SampledChain(recipe=sampled, options=ChainOptions(quiet=True), sample=units)
        check_chain(chain)
        for stage in STAGES:
            chain.snapshots(stage)
        rows = list(_logged(store))
    models = _model_phases(chain)
    pools = {stage: _pool(recipe, stage, cluster, models) for stage in STAGES}
    stages = estimate_stages(rows, chain.sizes, chain.modality, pools, cluster)
    return Estimate(units=units, sources=chain.sizes, stages=stages, cluster=cluster)


@dataclass(kw_only=True)
class _SampledChain(Chain):
    """A chain over some units of every source, which notes how large the whole is."""

    sample: int
    sizes: dict[str, SourceSize] = field(default_factory=dict)

    def _ingest_work(self, name: str) -> StageWork:
        work = super()._ingest_work(name)
        chosen = spread(work.units, self.sample)
        self.sizes[name] = SourceSize(
            units=len(work.units),
            bytes=sum(map(_raw_bytes, work.units)),
            measured_units=len(chosen),
            measured_bytes=sum(map(_raw_bytes, chosen)),
        )
        return replace(work, units=chosen)

    def _split_work(self, name: str) -> StageWork:
        """Take some of the units of film, which are of about equal length; an index unit has a thousand films."""
        work = super()._split_work(name)
        chosen = spread(work.units, self.sample)
        seconds = sum(map(_film_s, work.units))
        size = self.sizes[name]
        self.sizes[name] = replace(
            size,
            film_s=round(seconds / size.share, 3) if size.share else 0.0,
            measured_film=sum(map(_film_s, chosen)) / seconds if seconds else 1.0,
        )
        return replace(work, units=chosen)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items, evenly spaced: the middles of as many equal parts."""
    if count >= len(items):
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _raw_bytes(unit: Unit) -> int:
    return sum(
        file.size if file.start is None or file.end is None else file.end - file.start for file in unit.payload["files"]
    )


def _film_s(unit: Unit) -> float:
    return float(sum(part.weight_s for part in unit.payload["ranges"]))


def _pool(recipe: Recipe, stage: str, cluster: Cluster, models: frozenset[str]) -> Pool:
    if stage in _IN_THE_DRIVER:
        return Pool(workers=1, gpus=0.0)
    pool = stage_pool(recipe.execution, stage)
    if pool.decode is None:
        return Pool(workers=cluster.workers or pool.workers, gpus=pool.gpus)
    workers, decoders = shared_out(cluster.workers, pool.workers, pool.decode.workers)
    return Pool(workers=workers, gpus=pool.gpus, decode_workers=decoders, model_phases=models)


def shared_out(total: int | None, models: int, decoders: int) -> tuple[int, int]:
    """Share `total` workers (None: as many as there are) between two pools, in the recipe's proportion, one at least.

    Returns: workers with models, decoders.
    """
    if total is None:
        return models, decoders
    with_models = min(max(1, round(total * models / (models + decoders))), max(1, total - 1))
    return with_models, max(1, total - with_models)


def _model_phases(chain: Chain) -> frozenset[str]:
    """Return the phases that the pool with the models does; scorers without one run where pictures are decoded."""
    scorers = [item for scoring in chain.passes.values() for item in scoring.scorers.items()]
    return frozenset(f"model:{name}" for name, scorer in scorers if is_prepared(scorer))


def _logged(store: Store) -> Iterator[dict[str, Any]]:
    for entry in store.files():
        if "/logs/" in f"/{entry.path}" and entry.path.endswith(".jsonl"):
            yield from map(json.loads, store.read_bytes(entry.path).splitlines())


@contextmanager
def _scratch(recipe: Recipe) -> Iterator[tuple[Store, str]]:
    """Give a folder below the recipe's root, gone at the end."""
    root = f"{recipe.root.rstrip('/')}/scratch-{uuid.uuid4().hex[:8]}"
    store = open_store(root, recipe.storage)
    try:
        yield store, root
    finally:
        local = store.local_path("")
        try:
            if local is not None:
                shutil.rmtree(local, ignore_errors=True)
            else:
                store.delete_many([entry.path for entry in store.files()])
        except StorageError as error:
            log.warning("%s: could not be removed (%s); nothing reads it, delete it by hand", root, error)


def _total(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), 2) if known else None


def render(found: Estimate) -> str:
    """Return an estimate as text for people."""
    lines = []
    for name, size in found.sources.items():
        lines.append(
            f"{name}: {size.units:,} units, {size.bytes / 2**30:,.3f} GiB raw; measured {size.measured_units} units, "
            f"{100 * size.share:.3g} % of the bytes{_film(size)}"
        )
    lines.append(_cells(_HEADINGS))
    for one in found.stages:
        between = [f"{hours:.3g}" for hours in one.hours_between] if one.hours_between else ["-", "-"]
        cost = "-" if one.cost is None else f"{one.cost:,.2f}"
        workers = f"{one.decode_workers}+{one.workers}" if one.decode_workers else str(one.workers)
        speed = [f"{one.rows:,}", f"{one.rows_per_s_worker:,.1f}", one.bound_by, workers, f"{one.hours:.3g}"]
        lines.append(_cells([one.stage, *speed, *between, f"{one.bytes_written / 2**30:.3g}", cost]))
    total = found.to_json()
    cost = "" if total["cost"] is None else f", cost {total['cost']:,.2f}"
    lines.append(f"in all {total['hours']:.3g} h, {total['bytes_written'] / 2**30:,.3g} GiB written{cost}")
    lines.append(
        "extrapolated by raw bytes from the units above, at this machine's speed; from-to: were every unit like the "
        "fastest, like the slowest measured one. Copies over the whole source, and stores that many workers "
        "saturate, are not in it."
    )
    return "\n".join(lines)


def _film(size: SourceSize) -> str:
    if not size.film_s:
        return ""
    return f" ({size.film_s / 3600:,.3g} h of film by their headers; cut, scored and encoded {size.measured_film:.3g})"


_HEADINGS = ("stage", "rows", "rows/s/worker", "bound by", "workers", "hours", "from", "to", "GiB out", "cost")
_WIDTHS = (10, 15, 14, 16, 8, 9, 9, 9, 9, 10)


def _cells(texts: Sequence[str]) -> str:
    first, *others = texts
    return f"{first:<{_WIDTHS[0]}}" + "".join(
        f"{text:>{width}}" for text, width in zip(others, _WIDTHS[1:], strict=True)
    )
