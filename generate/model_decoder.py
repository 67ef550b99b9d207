"""Any causal model of transformers for generation, by its own forward and a cache that grows.

What `llama_decoder.py` does not know goes this way: slower, and right for whatever is inside.

Shape suffixes: B rows, L ids, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ModelDecoder:
    """A model's own forward; `length` ids a row at most."""

    def __init__(self, model: Any, rows: int, length: int) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._places_T = torch.arange(length, device=model.lm_head.weight.device)
        self._fed = 0

    def read(self, ids_BL: Tensor, padding_B: Tensor, rows_B: Tensor) -> Tensor:
        """Read prompts that are padded on the left and give the hidden states (B, D) behind them.

        Row b of all that follows goes on from prompt `rows_B[b]`.
        """
        self._padding_B1 = padding_B[:, None]
        self._is_padded = bool(padding_B.any())
        hidden_BD = self.feed(ids_BL)
        self._cache.batch_select_indices(rows_B)
        self._padding_B1 = self._padding_B1[rows_B]
        return hidden_BD[rows_B]

    def feed(self, ids_BL: Tensor) -> Tensor:
        """Read more ids of every row; gives the hidden state (B, D) behind them."""
        end = self._fed + ids_BL.shape[1]
        output = self._model.model(
            input_ids=ids_BL,
            attention_mask=(self._places_T[:end] >= self._padding_B1).long() if self._is_padded else None,
            position_ids=(self._places_T[self._fed : end] - self._padding_B1).clamp_min(0),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._fed = end
        hidden_BD: Tensor = output.last_hidden_state[:, -1]
        return hidden_BD
