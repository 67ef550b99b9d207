"""How an id is drawn from logits, so that a batch never changes what a row draws.

A picture could not be made again alone otherwise. So every row has its own generator, and an id is drawn by one uniform
number against the cumulated probabilities *in id order*: rounding that differs with the batch moves a boundary by 1e-7,
where drawing over sorted values would swap whole ids.

Shape suffixes: B rows, V allowed ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.errors import RecipeError, RunError
from tokenmill.generate.sampling import Sampling


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Move logits, or the hidden states they are made of, away from the unconditional ones: 1 leaves them."""
    return unconditional + guidance * (conditional - unconditional)


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """Draw an index (B,) by inverse CDF over the best; temperature 0 takes the best one.

    Raises RunError when the model gave NaN or infinity.
    """
    if not bool(torch.isfinite(logits_BV.sum())):
        raise RunError("the model gave logits that are not finite: its weights are damaged or the precision too low")
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    scaled_BV = logits_BV.double() / sampling.temperature
    if 0 < sampling.top_k < scaled_BV.shape[-1] or sampling.top_p < 1:
        least_B1 = _least_drawn(scaled_BV, sampling.top_k, sampling.top_p)
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)
    cumulated_BV = scaled_BV.softmax(dim=-1).cumsum(dim=-1)
    cumulated_BV = cumulated_BV / cumulated_BV[:, -1:]
    uniform_B1 = uniform_B.to(cumulated_BV.device, torch.float64)[:, None].contiguous()
    return torch.searchsorted(cumulated_BV, uniform_B1, right=True)[:, 0]


def _least_drawn(scaled_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Give the smallest logit that is drawn from; ids that share it are all in."""
    best_BV = scaled_BV.topk(min(top_k or scaled_BV.shape[-1], scaled_BV.shape[-1]), dim=-1).values
    if top_p == 1:
        return best_BV[:, -1:]
    shares_BV = best_BV.softmax(dim=-1)
    before_BV = shares_BV.cumsum(dim=-1) - shares_BV
    num_kept_B1 = (before_BV < top_p).sum(dim=-1, keepdim=True).clamp_min(1)
    return best_BV.gather(1, num_kept_B1 - 1)


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
