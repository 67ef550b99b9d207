"""Sampling that does not hang on who shares the batch: every row draws its tokens by a seed of its own.

`generate` samples all rows from one generator, so an answer would change with its neighbours. Here a row's random
numbers are drawn beforehand, one a step; a step takes the token at that point of the cumulated probabilities (largest
first, the smallest set of mass `top_p`) and leaves nothing else to choose, and `generate` chooses greedily.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_SEEDS = 2**63


class SeededChoice:
    """A logits processor of transformers'; also tells where answers begin in what `generate` returns.

    Args:
        seeds: one a row.
        steps: the most tokens of an answer.
        temperature: 0 leaves the scores as they are.
        top_p: share of the probability that is drawn from, above 0 to 1.
    """

    def __init__(self, seeds: Sequence[int], *, steps: int, temperature: float, top_p: float) -> None:
        self.prompt_length: int | None = None
        self._temperature, self._top_p = temperature, top_p
        rows = [np.random.default_rng(seed % _SEEDS).random(steps) for seed in seeds] if temperature else []
        self._points_BT = torch.from_numpy(np.stack(rows)) if rows else torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, vocabulary) that leave one token a row."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
            self._points_BT = self._points_BT.to(scores.device)
        if not self._temperature:
            return scores
        points_B1 = self._points_BT[:, input_ids.shape[1] - self.prompt_length, None]
        chosen_B1 = _drawn(scores, points_B1, self._temperature, self._top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B1, 0.0)


def _drawn(scores_BV: torch.Tensor, points_B1: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    probabilities_BV, tokens_BV = torch.softmax(scores_BV.float() / temperature, dim=-1).sort(dim=-1, descending=True)
    sums_BV = probabilities_BV.double().cumsum(dim=-1)
    kept_BV = sums_BV - probabilities_BV < top_p
    last_B1 = kept_BV.sum(dim=-1, keepdim=True) - 1
    places_B1 = (sums_BV <= points_B1 * sums_BV.gather(1, last_B1)).sum(dim=-1, keepdim=True)
    return tokens_BV.gather(1, torch.minimum(places_B1, last_B1))
