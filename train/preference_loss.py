"""DPO as a weighted next-token loss: what a pair's difference says is a weight for each id of its two answers.

    z = β · ((log π(chosen) - log ρ(chosen)) - (log π(rejected) - log ρ(rejected)))        loss = -log σ(z)

log π is the sum of an answer's own ids' log-probabilities, so the gradient by each of them is β · σ(-z), with the sign
of the answer: the loss that is there already takes that as its float weights. The logits are computed once more for it,
without a gradient, as z has to be known first; nothing else is computed twice, and no logits of a whole pack exist.
Source: Rafailov et al., "Direct Preference Optimization" (arXiv 2305.18290), equation 7.

Shape suffixes: L ids of a micro-batch, P pairs, the chosen answer before the rejected one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PairMeasures(NamedTuple):
    """Sums over the pairs that count, float64: divided by `pairs` they are means.

    A reward is β · (log π - log ρ) of an answer; a margin is the chosen one's less the rejected one's.
    """

    loss: Tensor
    margin: Tensor
    accuracy: Tensor
    reward_chosen: Tensor
    reward_rejected: Tensor
    pairs: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The pairs of a micro-batch on the device.

    Attributes:
        halves: int64 (L,), which half an id belongs to, 2·p or 2·p + 1; 2·P for none.
        reference: float64 (P, 2), log ρ.
        counts: bool (P,), which pairs count; the others could not be read, now or when log ρ was computed.
        beta: β.
        share: what a pair's loss is multiplied by: all weight of the step, by which sums are divided, over its pairs.
    """

    halves: Tensor
    reference: Tensor
    counts: Tensor
    beta: float
    share: float

    def weights(self, weights_L: Tensor, losses_L: Tensor) -> Tensor:
        """Return the weights with those that the pairs' answers have by their difference added."""
        rewards_P2 = self._rewards(losses_L)
        pull_P = self.beta * self.share * torch.sigmoid(rewards_P2[:, 1] - rewards_P2[:, 0]) * self.counts
        by_half = torch.cat([torch.stack([pull_P, -pull_P], dim=1).flatten(), pull_P.new_zeros(1)])
        return weights_L + by_half[self.halves].to(weights_L.dtype)

    def measured(self, losses_L: Tensor) -> PairMeasures:
        """Tell how the pairs stand, of the cross-entropies of a micro-batch's ids."""
        rewards_P2 = self._rewards(losses_L)[self.counts]
        margin = rewards_P2[:, 0] - rewards_P2[:, 1]
        pairs = self.counts.sum().double()
        return PairMeasures(F.softplus(-margin).sum(), margin.sum(), (margin > 0).sum().double(),
                            rewards_P2[:, 0].sum(), rewards_P2[:, 1].sum(), pairs)  # fmt: skip

    def _rewards(self, losses_L: Tensor) -> Tensor:
        found_P2 = answer_log_probabilities(losses_L, self.halves, len(self.reference))
        return self.beta * (found_P2 - self.reference)


def answer_log_probabilities(losses_L: Tensor, halves_L: Tensor, pairs: int) -> Tensor:
    """Sum up the log-probabilities of the answers' ids, (P, 2): float64, as sums of thousands are to be subtracted."""
    sums = torch.zeros(2 * pairs + 1, dtype=torch.float64, device=losses_L.device)
    sums.index_add_(0, halves_L, losses_L.detach().double())
    return -sums[:-1].reshape(pairs, 2)
