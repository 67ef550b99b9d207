"""Losses on held-out packs while training, by modality and template; the same numbers on any number of ranks.

Every pack goes through the model alone, without dropout, and its sums are added up in the plan's order after all ranks
have said theirs: not even the rounding hangs on who computed what.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import Store
from tokenmill.settings_evaluation import EvaluationSettings
from tokenmill.settings_train import LoaderSettings
from tokenmill.train.loader import PlanLoader
from tokenmill.train.loading import loading
from tokenmill.train.model import Batch
from tokenmill.train.sequence_parallel import part_of
from tokenmill.train.tally import Sums, Tally, finite, losses_of, summed_over_ranks
from tokenmill.train.world import ALONE, SequenceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a run is evaluated on: the first `packs` packs of a held-out plan, a pack a rank at a time."""

    loader: PlanLoader
    packs: int
    every: int
    sequence: SequenceGroup = ALONE

    @classmethod
    def of(
        cls,
        store: Store,
        path: str,
        asked: EvaluationSettings,
        training: PlanLoader,
        loading_settings: LoaderSettings,
        sequence: SequenceGroup = ALONE,
    ) -> Evaluation:
        """Open the held-out plan for the ranks of a training loader, which share packs as in training.

        Raises RecipeError where it could hold what is trained on, is of another vocabulary, or has longer packs.
        """
        plan = open_plan(store, path)
        _check(plan, training.plan)
        loader = PlanLoader(
            plan,
            training.vocabulary,
            global_packs=training.world,
            rank=training.rank,
            world=training.world,
            **loading(plan, loading_settings),
        )
        packs = plan.num_packs if asked.packs is None else min(asked.packs, plan.num_packs)
        return cls(loader=loader, packs=packs, every=asked.every, sequence=sequence)

    def is_due(self, done: int, total_steps: int) -> bool:
        """Say whether to evaluate after so many steps."""
        return done % self.every == 0 or done == total_steps

    @torch.no_grad()
    def row(self, engine: Any, device: torch.device, done: int) -> dict[str, Any]:
        """Evaluate the weights as they are; every rank must call this. Training goes on as if it had not been.

        The means are over what could be read; `unreadable` counts the samples that could not.
        """
        engine.eval()
        sums, unreadable = self._sums(engine, device)
        engine.train()
        weight = sums[1].sum()
        row = {
            "step": done,
            "packs": self.packs,
            "weight": float(weight),
            **losses_of(sums, float(weight), sums[1].sum(axis=1)),
            "unreadable": unreadable,
        }
        return finite(row)

    def _sums(self, engine: Any, device: torch.device) -> tuple[Sums, int]:
        shape = Tally(self.loader.vocabulary).sums().shape
        by_pack = np.zeros((self.packs, *shape))
        unreadable = 0
        with closing(self.loader.steps(0, -(-self.packs // self.loader.world))) as steps:
            for step in steps:
                arrays = part_of(step.micro_batches[0], self.sequence, self.loader.vocabulary.pad)
                _, losses = engine(Batch.of(arrays, device, self.sequence))
                pack = int(step.documents.packs[0, 0])
                if 0 <= pack < self.packs:
                    tally = Tally(self.loader.vocabulary)
                    first_id = self.sequence.rank * len(arrays.labels)
                    tally.add(arrays, step.documents.templates[0], losses, first_id=first_id)
                    by_pack[pack] = tally.sums()
                    unreadable += len(step.faults) if self.sequence.is_first else 0
        summed = summed_over_ranks(np.append(by_pack.ravel(), unreadable), device)
        found: Sums = summed[:-1].reshape(by_pack.shape).sum(axis=0)
        return found, int(summed[-1])


def _check(held_out: Plan, training: Plan) -> None:
    asked, trained = (plan.folder.config.settings["plan"] for plan in (held_out, training))
    where = f"train.evaluation.phase: {held_out.folder.path}"
    if asked["part"] != "held_out":
        raise RecipeError(f"{where} is of part {asked['part']}, not held_out; plan a phase with part: held_out")
    if trained["part"] == "training" and asked["held_out"] > trained["held_out"]:
        raise RecipeError(
            f"{where} holds out {asked['held_out']:g} of the samples, {training.folder.path} only "
            f"{trained['held_out']:g}: it would be evaluated on what is trained on"
        )
    if held_out.context > training.context:
        raise RecipeError(
            f"{where} has packs of {held_out.context} ids, {training.folder.path} of {training.context}; "
            "evaluate on packs that are no longer"
        )
