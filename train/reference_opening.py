"""Opening a run's reference: fixed when the run begins, completed by the weights that it began with.

`checkpoints/<run>/reference-<plan>.json` names it. A run that has a checkpoint may have other weights in its engine
than those it began with; what it lacks then cannot be computed any more, unless they turn out to be the same. So a run
that goes on with another plan of pairs is refused: those weights are not looked for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.plans import Plan
from tokenmill.settings_train import TrainSettings
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.loader import PlanLoader
from tokenmill.train.loading import loading
from tokenmill.train.model import PackedModel
from tokenmill.train.reference import SCHEMA, ReferenceFolder
from tokenmill.train.reference_pass import complete, packs_at_once, weights_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The run whose reference is opened: its engine with the starting weights, and what it reads."""

    engine: Any
    model: PackedModel
    loader: PlanLoader
    folder: RunFolder
    settings: TrainSettings
    packs: range
    device: torch.device

    @property
    def plan(self) -> Plan:
        return self.loader.plan

    @property
    def record(self) -> str:
        """The file that says which reference the run has."""
        return self.folder.at(f"reference-{short(self.plan.plan_id)}.json")


def open_reference(opening: Opening, stops: Callable[[], bool]) -> ReferenceFolder | None:
    """Return the reference with all that the run reads; every rank calls this alike.

    Returns None where any rank was asked to stop before the end. Raises RecipeError where parts are missing, or all of
    them, and the weights are not those that the run began with.
    """
    path, has_checkpoint = _recorded(opening)
    found = ReferenceFolder(opening.plan.folder.store, path or "")
    if path and has_checkpoint and not _missing(opening, found):
        return found
    if has_checkpoint and not path:
        raise _none_any_more(opening)
    now = _path_now(opening)
    if has_checkpoint and path != now:
        raise _cannot_complete(opening, found, now)
    if path != now:
        _write_record(opening, now)
        found = ReferenceFolder(opening.plan.folder.store, now)
    missing = _missing(opening, found)
    if missing:
        log.info("reference: %d parts of %s are to be computed", len(missing), now)
    if missing and not complete(opening.engine, _loader(opening), found, missing, opening.device, stops):
        return None
    return found


def _recorded(opening: Opening) -> tuple[str, bool]:
    """Return the folder that the run's record names ("" where there is none), and whether it has a checkpoint.

    All ranks get what rank 0 reads.
    """
    told: list[Any] = ["", False]
    store = opening.folder.store
    if dist.get_rank() == 0:
        told[1] = bool(opening.folder.steps())
        try:
            if store.exists(opening.record):
                told[0] = str(json.loads(store.read_bytes(opening.record))["reference"])
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{opening.record}: names no reference; remove it to have it written anew") from error
    dist.broadcast_object_list(told)
    return told[0], told[1]


def _missing(opening: Opening, found: ReferenceFolder) -> list[range]:
    """Return the parts that rank 0 misses, on every rank: another run from the same weights may publish meanwhile."""
    told: list[Any] = [found.missing(opening.packs) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    missing: list[range] = told[0]
    return missing


def _path_now(opening: Opening) -> str:
    """Name the folder of the log-probabilities that the weights in the engine give."""
    weights = weights_digest(opening.engine, opening.model)
    digest = digest_of({"weights": weights, "precision": opening.settings.precision})
    return f"{opening.plan.folder.path}/references/{short(digest)}"


def _write_record(opening: Opening, path: str) -> None:
    if dist.get_rank() == 0:
        told = {"schema": SCHEMA, "reference": path, "plan": opening.plan.plan_id}
        data = (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()
        opening.folder.store.put(opening.record, data)
    dist.barrier()


def _none_any_more(opening: Opening) -> RecipeError:
    return RecipeError(
        f"train.preference: {opening.folder.at('')} has checkpoints and no reference for {opening.plan.folder.path}, "
        "which only the weights can give that it began with; train these pairs in another run (train.run), begun from "
        f"this one if you like (train.start_from: {opening.folder.run})"
    )


def _cannot_complete(opening: Opening, found: ReferenceFolder, now: str) -> RecipeError:
    missing = found.missing(opening.packs)
    return RecipeError(
        f"train.preference: {opening.folder.at('')} has no reference for packs {missing[0].start} to "
        f"{missing[-1].stop - 1}, which only the weights can give that it began with ({found.path}), not those of the "
        f"recipe now ({now}); give this run another name (train.run), or train no longer than it was to at first"
    )


def _loader(opening: Opening) -> PlanLoader:
    """Open the same plan for the same ranks once more, so many packs a step that parts end where steps do."""
    training, settings = opening.loader, opening.settings
    return PlanLoader(
        training.plan,
        training.vocabulary,
        global_packs=packs_at_once(training.world, settings.micro_packs),
        rank=training.rank,
        world=training.world,
        micro_packs=settings.micro_packs,
        **loading(training.plan, settings.loader),
    )
