"""How an id is drawn from logits, so that a batch never changes what a row draws.

A picture could not be made again alone otherwise. So every row has its own generator, and an id is drawn by one uniform
number against the cumulated probabilities *in id order*: rounding that differs with the batch moves a boundary by 1e-7,
where drawing over sorted values would swap whole ids.

Shape suffixes: B rows, V allowed ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenmill.errors import RecipeError, RunError
from tokenmill.generate.sampling import Sampling


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Move logits, or the hidden states they are made of, away from the unconditional ones: 1 leaves them."""
    return unconditional + guidance * (conditional - unconditional)


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """Draw an index (B,) by inverse CDF over the best; temperature 0 takes the best one.

    Logits that share the last place among the best are all in. Raises RunError when the model gave NaN or infinity.
    """
    if not bool(torch.isfinite(logits_BV.sum())):
        raise RunError("the model gave logits that are not finite: its weights are damaged or the precision too low")
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    least_B1 = _least_drawn(logits_BV, sampling)
    shares_BV = ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / sampling.temperature).exp_()
    if least_B1 is not None:
        shares_BV *= logits_BV >= least_B1
    cumulated_BV = _cumulated(shares_BV)
    wanted_B1 = uniform_B.to(cumulated_BV.device, torch.float64)[:, None] * cumulated_BV[:, -1:]
    return torch.searchsorted(cumulated_BV, wanted_B1, right=True)[:, 0]


def _least_drawn(logits_BV: Tensor, sampling: Sampling) -> Tensor | None:
    """Give the smallest logit (B, 1) that is drawn from, None where all are."""
    size = logits_BV.shape[-1]
    kept = sampling.top_k if 0 < sampling.top_k < size else size
    if sampling.top_p < 1:
        best_BV = logits_BV.topk(kept, dim=-1).values
        shares_BV = (best_BV.double() / sampling.temperature).softmax(dim=-1)
        before_BV = shares_BV.cumsum(dim=-1) - shares_BV
        return best_BV.gather(1, (before_BV < sampling.top_p).sum(dim=-1, keepdim=True) - 1)
    if kept == size:
        return None
    if logits_BV.is_cuda:
        return logits_BV.topk(kept, dim=-1).values[:, -1:]
    # a third of what topk takes for 2,048 of 32,768
    partly_sorted = np.partition(logits_BV.numpy(), size - kept, axis=-1)
    return torch.from_numpy(partly_sorted[:, size - kept, None])


def _cumulated(shares_BV: Tensor) -> Tensor:
    """Cumulate in double, on the CPU in a fifth of torch's time."""
    if shares_BV.is_cuda:
        return shares_BV.cumsum(dim=-1, dtype=torch.float64)
    return torch.from_numpy(np.cumsum(shares_BV.numpy(), axis=-1, dtype=np.float64))


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Give (B, steps) uniform numbers, each row from its own seed, on the CPU whatever the device."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def seed_list(seed: int | Sequence[int], count: int) -> list[int]:
    """Give one seed a sample: the list itself, or seed, seed + 1, …"""
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise RecipeError(f"{len(seeds)} seeds for {count} prompts")
    return seeds
