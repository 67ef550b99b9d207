"""Preference training of a run: which steps have which pairs, against which reference, and how they stand.

`open` fixes the reference at a run's first launch and completes its table; `of` then gives what a step needs beside its
arrays. Losses are divided by what the plan says the whole step has: DPO by its pairs, next-token loss by the weight of
all documents but rejected answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.plans import Plan
from tokenmill.settings_preference import PreferenceSettings
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.loader import PlanLoader
from tokenmill.train.loading import loading
from tokenmill.train.model import Batch, PackedModel
from tokenmill.train.packs import PackArrays
from tokenmill.train.pair_places import PairPlaces, StepShares, pair_places, step_shares
from tokenmill.train.preference_loss import PairMeasures, Pairs
from tokenmill.train.reference import SCHEMA, ReferenceFolder
from tokenmill.train.reference_pass import answer_ids, complete, packs_at_once, weights_digest
from tokenmill.train.step_documents import TEMPLATE_NAMES
from tokenmill.train.steps import Step

log = logging.getLogger(__name__)


def check_preference(settings: PreferenceSettings | None, plan: Plan) -> None:
    """Raise RecipeError where a plan has pairs and the recipe says nothing of them, or the other way round."""
    has_pairs = PREFERENCE in plan.description["templates"]
    if has_pairs and settings is None:
        raise RecipeError(
            f"train.preference: {plan.folder.path} holds preference pairs, whose rejected answers must not be learned; "
            "set train.preference.beta, or show chosen answers alone (plan.templates.pair: {chosen: 1})"
        )
    if settings is not None and not has_pairs:
        raise RecipeError(
            f"train.preference: {plan.folder.path} holds no preference pairs; leave train.preference out, or plan a "
            "source of pairs"
        )


@dataclass(frozen=True, kw_only=True)
class Preference:
    """What the steps of a preference run share."""

    settings: PreferenceSettings
    plan: Plan
    reference: ReferenceFolder

    def of(self, step: Step, packs: range) -> StepPreference:
        """Find the pairs of a rank's part of a step, which has `packs` on all ranks."""
        places = [pair_places(self.plan, numbers) for numbers in step.documents.packs.tolist()]
        shares = step_shares(self.plan, packs)
        return StepPreference(settings=self.settings, reference=self.reference, places=places, shares=shares,
                              step=_without_rejected(step, places, shares))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepPreference:
    """One rank's part of a step: `step` is that in which rejected answers weigh nothing; `places` of micro-batches.

    `sums` are `PairMeasures` of the micro-batches that were added.
    """

    settings: PreferenceSettings
    reference: ReferenceFolder
    places: list[PairPlaces]
    shares: StepShares
    step: Step
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(len(PairMeasures._fields), dtype=torch.float64))

    def batch(self, number: int, batch: Batch) -> Batch:
        """Add the pairs of a micro-batch, so that the sum of its weighted losses ÷ `step.weight` has both losses."""
        pairs = self._pairs(self.step.micro_batches[number], self.places[number], batch.labels.device)
        return replace(batch, loss_weight=batch.loss_weight * self.settings.next_token_weight, pairs=pairs)

    def add(self, batch: Batch, losses_L: torch.Tensor) -> None:
        """Measure a micro-batch that went through the model."""
        assert batch.pairs is not None
        self.sums.add_(torch.stack([*batch.pairs.measured(losses_L)]).cpu())

    def row(self, next_token: float, device: torch.device) -> dict[str, Any]:
        """Give a step's metrics, of its next-token loss and what all ranks added; every rank must call this."""
        summed = self.sums.to(device)
        dist.all_reduce(summed)
        return self.told(next_token, PairMeasures(*summed.cpu()))

    def told(self, next_token: float, sums: PairMeasures) -> dict[str, Any]:
        """Give a step's metrics of sums over all ranks."""
        loss_sum, margin, accuracy, chosen, rejected, pairs = map(float, sums)
        counted = max(pairs, 1.0)
        loss = loss_sum / max(self.shares.pairs, 1)
        return {
            "loss": loss + self.settings.next_token_weight * next_token,
            "loss_preference": loss,
            "loss_next_token": next_token,
            "margin": margin / counted,
            "accuracy": accuracy / counted,
            "reward_chosen": chosen / counted,
            "reward_rejected": rejected / counted,
            "pairs": int(pairs),
        }

    def _pairs(self, arrays: PackArrays, places: PairPlaces, device: torch.device) -> Pairs:
        halves = places.halves(len(arrays.labels))
        values, counts = self.reference.of(places)
        counted = (answer_ids(arrays, halves, len(places)) == counts).all(axis=1) & np.isfinite(values).all(axis=1)
        return Pairs(
            halves=torch.from_numpy(halves).to(device),
            reference=torch.from_numpy(np.nan_to_num(values)).to(device),
            counts=torch.from_numpy(counted & (counts > 0).all(axis=1)).to(device),
            beta=self.settings.beta,
            share=max(self.step.weight, 1e-9) / max(self.shares.pairs, 1),
        )


def open_preference(
    engine: Any,
    model: PackedModel,
    loader: PlanLoader,
    folder: RunFolder,
    settings: TrainSettings,
    packs: range,
    device: torch.device,
    stops: Callable[[], bool],
) -> Preference | None:
    """Complete the reference of a run that reads `packs`, with the starting weights that are in the engine.

    Every rank calls this alike. Returns None where any rank was asked to stop before the end. Raises RecipeError
    where parts are missing and the weights are not those that the run began with.
    """
    assert settings.preference is not None
    plan = loader.plan
    found = _recorded(folder, plan)
    missing = [packs] if found is None else found.missing(packs)
    if missing:
        found = _begun(folder, plan, weights_digest(engine, model), settings.precision, found)
        missing = found.missing(packs)
        log.info("reference: %d parts of %s are to be computed", len(missing), found.path)
        if not complete(engine, _loader(loader, settings), found, missing, device, stops):
            return None
    assert found is not None
    return Preference(settings=settings.preference, plan=plan, reference=found)


def _recorded(folder: RunFolder, plan: Plan) -> ReferenceFolder | None:
    """Return the reference that the run's first launch wrote down; every rank gets what rank 0 reads."""
    name, told = _record(folder, plan), [None]
    if dist.get_rank() == 0 and folder.store.exists(name):
        try:
            told = [json.loads(folder.store.read_bytes(name))["reference"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{name}: not the record of a reference; remove it to have it written anew") from error
    dist.broadcast_object_list(told)
    return None if told[0] is None else ReferenceFolder(plan.folder.store, str(told[0]))


def _begun(
    folder: RunFolder, plan: Plan, weights: str, precision: str, recorded: ReferenceFolder | None
) -> ReferenceFolder:
    """Write down whose log-probabilities are the run's reference, or compare with what stands there."""
    path = f"{plan.folder.path}/references/{short(digest_of({'weights': weights, 'precision': precision}))}"
    if recorded is not None and recorded.path != path:
        raise RecipeError(
            f"train.model: {folder.at('')} began with other weights ({recorded.path}) than it would begin with now "
            f"({path}), and lacks a part of its reference; give this run another name (train.run)"
        )
    if recorded is None and dist.get_rank() == 0:
        told = {"schema": SCHEMA, "reference": path, "weights": weights, "precision": precision, "plan": plan.plan_id}
        folder.store.put(_record(folder, plan), (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())
    dist.barrier()
    return ReferenceFolder(plan.folder.store, path)


def _record(folder: RunFolder, plan: Plan) -> str:
    return folder.at(f"reference-{short(plan.plan_id)}.json")


def _loader(training: PlanLoader, settings: TrainSettings) -> PlanLoader:
    """Open the same plan for the same ranks once more, so many packs a step that parts end where steps do."""
    return PlanLoader(
        training.plan,
        training.vocabulary,
        global_packs=packs_at_once(training.world, settings.micro_packs),
        rank=training.rank,
        world=training.world,
        micro_packs=settings.micro_packs,
        **loading(training.plan, settings.loader),
    )


def _without_rejected(step: Step, places: Sequence[PairPlaces], shares: StepShares) -> Step:
    """Let rejected answers weigh nothing."""
    batches = []
    for arrays, pairs in zip(step.micro_batches, places, strict=True):
        weights = arrays.loss_weight.copy()
        for begin, end in zip(pairs.begins[:, 1].tolist(), pairs.ends[:, 1].tolist(), strict=True):
            weights[begin:end] = 0.0
        batches.append(arrays._replace(loss_weight=weights))
    documents = replace(step.documents, weight=step.documents.weight.copy())
    documents.weight[TEMPLATE_NAMES.index(PREFERENCE)] -= shares.rejected_weight
    return replace(step, micro_batches=batches, weight=shares.next_token_weight, tell_documents=lambda: documents)
