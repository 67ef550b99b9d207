"""Preference training of a run: which steps have which pairs, against which reference, and how they stand.

Losses are divided by what the plan says the whole step has: DPO by its pairs, next-token loss by the weight of
all documents but rejected answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan
from tokenmill.settings_preference import PreferenceSettings
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.train.model import Batch
from tokenmill.train.packs import PackArrays
from tokenmill.train.pair_places import PairPlaces, StepShares, pair_places, step_shares
from tokenmill.train.preference_loss import PairMeasures, Pairs
from tokenmill.train.reference import ReferenceFolder
from tokenmill.train.reference_pass import answer_ids
from tokenmill.train.step_documents import TEMPLATE_NAMES
from tokenmill.train.steps import Step


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
