"""What a step's losses come to, by modality and by template, over all ranks.

Sums are kept by template *and* modality, (loss, weight) each, in float64 on the host. Losses stay on the device until a
step is through, so that no micro-batch waits for the one before to be copied.

L ids, D documents, T templates; a modality is 0 for text and 1 for vision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train.packs import PackArrays
from tokenmill.train.step_documents import PADDING, TEMPLATE_NAMES

Sums = NDArray[np.float64]
"""(2, T, 2): weighted loss and weight, by template, by modality."""


class Tally:
    """Takes in micro-batches of one rank; `over_ranks` adds up what all have."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._parts: list[tuple[Tensor, NDArray[np.int64], NDArray[np.float32]]] = []
        self._totals: list[Tensor] = []

    def add(
        self,
        arrays: PackArrays,
        templates: NDArray[np.int64],
        losses_L: Tensor,
        total: Tensor | None = None,
        first_id: int = 0,
    ) -> None:
        """Take in the losses of a micro-batch and the templates (D,) of its documents.

        `total` is the sum that was differentiated, for what it has beside the cross-entropies. Of a rank that holds a
        part of a sequence, the arrays are that part with the borders of the whole, and `first_id` is where it begins.
        """
        by_id = _by_id(arrays.cu_seqlens, templates)[first_id : first_id + len(arrays.labels)]
        is_vision = self._vocabulary.vision_mask(arrays.labels)
        self._parts.append((losses_L.detach(), 2 * by_id + is_vision, arrays.loss_weight))
        if total is not None:
            self._totals.append(total.detach())

    def sums(self) -> Sums:
        """Return this rank's sums."""
        sums = np.zeros((2, 2 * len(TEMPLATE_NAMES)))
        for losses, groups, weights in self._parts:
            weighted = losses.double().cpu().numpy() * weights
            sums[0] += np.bincount(groups, weighted, sums.shape[1])
            sums[1] += np.bincount(groups, weights, sums.shape[1])
        return sums.reshape(2, -1, 2)

    def over_ranks(self, device: torch.device | str, *more: float) -> tuple[Sums, float, list[float]]:
        """Return the sums of all ranks, that of what totals have beside them, and those of some numbers more."""
        mine = self.sums()
        total = sum(float(one) for one in self._totals)
        extra = total - mine[0].sum() if self._totals else 0.0
        summed = summed_over_ranks(np.concatenate([mine.ravel(), [extra, *more]]), device)
        return summed[: mine.size].reshape(mine.shape), float(summed[mine.size]), summed[mine.size + 1 :].tolist()


def _by_id(borders: NDArray[np.int32], templates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the template of every id; padding, which weighs nothing, has any, and so has what was appended of it."""
    numbers = np.zeros(len(borders) - 1, np.int64)
    numbers[: len(templates)] = np.where(templates == PADDING, 0, templates)
    return np.repeat(numbers, np.diff(borders))


def summed_over_ranks(values: NDArray[np.float64], device: torch.device | str) -> NDArray[np.float64]:
    """Add up an array over all ranks; every rank must call this."""
    summed = torch.from_numpy(values).to(device)
    dist.all_reduce(summed)
    found: NDArray[np.float64] = summed.cpu().numpy()
    return found


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row with none in place of every number that is not finite, which JSON does not know."""
    return {name: finite(value) if isinstance(value, Mapping) else _finite(value) for name, value in row.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def losses_of(sums: Sums, weight: float, template_weights: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
    """Give mean losses: in all and by template over what the plan says they weigh, by modality over what was there.

    A template or modality that has no weight has no loss: none, and no place in `loss_by_template`.
    """
    losses, weights = sums
    by_modality = [
        float(loss) / float(one) if one else None for loss, one in zip(losses.sum(0), weights.sum(0), strict=True)
    ]
    return {
        "loss": float(losses.sum()) / max(weight, 1e-9),
        "loss_text": by_modality[0],
        "loss_vision": by_modality[1],
        "loss_by_template": {
            name: float(loss) / float(one)
            for name, loss, one in zip(TEMPLATE_NAMES, losses.sum(1), template_weights, strict=True)
            if one > 0
        },
    }
