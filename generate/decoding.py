"""The two moves that all sampling is made of: run a batch one step on, and draw an id for each row.

A batch must not change what a row draws, or a picture could never be made again alone. So rows are padded on the left
with positions of their own, every row has its own generator, and an id is drawn by one uniform number against the
cumulated probabilities *in id order*: rounding that differs with the batch moves a boundary by 1e-7, where drawing over
sorted values would swap whole ids.

Shape suffixes: B rows, L ids, D width, V allowed ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.errors import RecipeError, RunError


class Continuation:
    """A batch of prompts with its key-value cache; `advance` feeds ids and gives the last hidden state."""

    def __init__(self, model: Any, prompts: Sequence[NDArray[np.int32]], max_new: int, pad: int) -> None:
        from transformers import DynamicCache

        lengths = [len(prompt) for prompt in prompts]
        _check_context(model, max(lengths) + max_new)
        self._model = model
        self._device = model.lm_head.weight.device
        self._cache = DynamicCache(config=model.config)
        self._padding_B = torch.tensor([max(lengths) - length for length in lengths], device=self._device)
        self._mask_BL = torch.arange(max(lengths) + max_new, device=self._device) >= self._padding_B[:, None]
        self._fed = 0
        padded = [np.pad(prompt, (max(lengths) - len(prompt), 0), constant_values=pad) for prompt in prompts]
        self._pending_BL = torch.from_numpy(np.stack(padded).astype(np.int64)).to(self._device)

    def append(self, ids_B: Tensor) -> None:
        """Queue one id a row; nothing is computed until a hidden state is asked for."""
        self._pending_BL = torch.cat([self._pending_BL, ids_B.to(self._device)[:, None]], dim=1)

    def advance(self) -> Tensor:
        """Feed what is queued and give the hidden state (B, D) behind it."""
        end = self._fed + self._pending_BL.shape[1]
        positions_L = torch.arange(self._fed, end, device=self._device)
        positions_BL = (positions_L - self._padding_B[:, None]).clamp_min(0)
        padded = bool(self._padding_B.any())
        output = self._model.model(
            input_ids=self._pending_BL,
            attention_mask=self._mask_BL[:, :end].long() if padded else None,
            position_ids=positions_BL,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._fed = end
        self._pending_BL = self._pending_BL[:, :0]
        hidden_BD: Tensor = output.last_hidden_state[:, -1]
        return hidden_BD


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Move logits away from the unconditional ones: 1 leaves them, 3 is Emu3's released setting."""
    return unconditional + guidance * (conditional - unconditional)


def draw(logits_BV: Tensor, uniform_B: Tensor, *, top_k: int, temperature: float) -> Tensor:
    """Draw an index (B,) by inverse CDF over the `top_k` best; temperature 0 takes the best one.

    Raises RunError when the model gave NaN or infinity.
    """
    if not bool(torch.isfinite(logits_BV).all()):
        raise RunError("the model gave logits that are not finite: its weights are damaged or the precision too low")
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    scaled_BV = logits_BV.double() / temperature
    if 0 < top_k < scaled_BV.shape[-1]:
        kth_B1 = scaled_BV.topk(top_k, dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < kth_B1, -torch.inf)
    cumulated_BV = scaled_BV.softmax(dim=-1).cumsum(dim=-1)
    cumulated_BV = cumulated_BV / cumulated_BV[:, -1:]
    uniform_B1 = uniform_B.to(cumulated_BV.device, torch.float64)[:, None].contiguous()
    return torch.searchsorted(cumulated_BV, uniform_B1, right=True)[:, 0]


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


def check_sampling(top_k: int, temperature: float) -> None:
    if top_k < 0 or temperature < 0:
        raise RecipeError(f"top_k ({top_k}) and temperature ({temperature}) must not be negative")


def _check_context(model: Any, needed: int) -> None:
    context = model.config.max_position_embeddings
    if needed > context:
        raise RecipeError(f"prompt and answer need {needed} ids; the model's context holds {context}")
