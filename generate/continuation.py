"""A batch of prompts with its key-value cache: feed ids, get the hidden state behind them.

Rows are padded on the left, each with positions of its own. Equal prompts are read once and their cache is copied: the
unconditional prompt of guidance is the same for a whole batch, and so are several samples of one prompt.

Shape suffixes: B rows, L ids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.errors import RecipeError


class Continuation:
    """Prompts being continued by at most `max_new` ids each; `start` reads them, `feed` goes on."""

    def __init__(self, model: Any, prompts: Sequence[NDArray[np.int32]], max_new: int, pad: int) -> None:
        from transformers import DynamicCache

        lengths = [len(prompt) for prompt in prompts]
        self._longest = max(lengths)
        check_context(model, self._longest, max_new)
        self._model = model
        self._device = model.lm_head.weight.device
        self._cache = DynamicCache(config=model.config)
        padding = torch.tensor([self._longest - length for length in lengths], device=self._device)
        self._padding_B = padding
        self._mask_BL = torch.arange(self._longest + max_new, device=self._device) >= padding[:, None]
        self._fed = 0
        padded = [np.pad(prompt, (self._longest - len(prompt), 0), constant_values=pad) for prompt in prompts]
        self._prompts_BL = torch.from_numpy(np.stack(padded).astype(np.int64)).to(self._device)

    def start(self) -> Tensor:
        """Read the prompts and give the hidden state (B, D) behind them."""
        return self.feed(self._prompts_BL)

    def feed(self, ids_BL: Tensor) -> Tensor:
        """Read more ids of every row and give the hidden state (B, D) behind them."""
        end = self._fed + ids_BL.shape[1]
        positions_L = torch.arange(self._fed, end, device=self._device)
        positions_BL = (positions_L - self._padding_B[:, None]).clamp_min(0)
        padded = bool(self._padding_B.any())
        output = self._model.model(
            input_ids=ids_BL,
            attention_mask=self._mask_BL[:, :end].long() if padded else None,
            position_ids=positions_BL,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._fed = end
        hidden_BD: Tensor = output.last_hidden_state[:, -1]
        return hidden_BD


def check_context(model: Any, num_prompt: int, num_new: int) -> None:
    """Refuse what the model was not made to read; raises RecipeError with the numbers."""
    context = model.config.max_position_embeddings
    if num_prompt + num_new > context:
        raise RecipeError(
            f"prompt and answer need {num_prompt + num_new} ids ({num_prompt} and {num_new}); "
            f"the model's context holds {context}"
        )
