"""A Llama-like model's forward for generation: few operations a step, over a key-value cache that is allocated once.

A cache that grows by concatenation copies itself each step, and a step of a small model is half a matter of how many
operations are started: the preset `tiny` takes 3.8 ms of CPU for 16 rows where transformers' forward takes 5.3
(benchmarks/generate.py). Hidden states are those of the model's own forward (tests: to 1e-5, in float64 to 1e-12).
Models with anything else inside are not known here, and transformers runs them (`model_decoder.py`).

On CUDA a step of one id is compiled: it reads the whole cache under a mask, so that no shape changes from step to step.
On an H200 it gives the ids that the CPU gives, in float32.

Shape suffixes: B rows, L ids, D width, H heads of queries, G of keys and values, K width of a head, T ids of the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.generate.llama_weights import Layer, LlamaWeights, linear

_CHUNK = 256  # the compiled step's cache is a multiple as long, so that few lengths are compiled for


class LlamaDecoder:
    """The forward of a model that `llama_weights.is_known`, with a cache of `rows` times `length` ids.

    `is_compiled` is chosen by the device where it is None.
    """

    def __init__(self, model: Any, rows: int, length: int, *, is_compiled: bool | None = None) -> None:
        self._weights = LlamaWeights.of(model)
        embedding = self._weights.embedding
        self._is_compiled = embedding.is_cuda if is_compiled is None else is_compiled
        length = -(-length // _CHUNK) * _CHUNK if self._is_compiled else length
        layers, shape = len(self._weights.layers), self._weights.shape
        self._cache = embedding.new_zeros((layers, 2, rows, shape.kv_heads, length, shape.head_width))
        self._places_T = torch.arange(length, device=embedding.device)
        cos, sin = model.model.rotary_emb(embedding, position_ids=self._places_T[None])
        self._rope = cos[0], sin[0]
        self._fed = 0

    def read(self, ids_BL: Tensor, padding_B: Tensor, rows_B: Tensor) -> Tensor:
        """Read prompts that are padded on the left and give the hidden states (B, D) behind them.

        Row b of all that follows goes on from prompt `rows_B[b]`.
        """
        length = self._fed = ids_BL.shape[1]
        places_L = self._places_T[:length]
        mask = None
        if bool(padding_B.any()):
            is_seen = (places_L[:, None] >= places_L) & (places_L >= padding_B[:, None, None])
            is_itself = places_L[:, None] == places_L  # a place that sees nothing would not be a number
            mask = _additive(is_seen | is_itself, self._cache)[:, None]
        hidden = F.embedding(ids_BL, self._weights.embedding)
        cos, sin = self._rope_at((places_L - padding_B[:, None]).clamp_min(0))
        for layer, cache in zip(self._weights.layers, self._cache, strict=True):
            query, key, value = _attended(layer, self._weights, hidden, cos, sin)
            cache[:, :, :, :length] = torch.stack([key, value])[:, rows_B]
            mixed = F.scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None, scale=self._weights.shape.scaling, enable_gqa=True
            )
            hidden = _finished(layer, self._weights, hidden, mixed)
        self._padding_B1 = padding_B[rows_B][:, None]
        is_padded = bool(padding_B.any())
        self._mask = _additive(self._places_T >= self._padding_B1, self._cache)[:, None, None] if is_padded else None
        return _normed(hidden[:, -1], self._weights.final_norm, self._weights.shape.epsilon)[rows_B]

    def feed(self, ids_BL: Tensor) -> Tensor:
        """Read more ids of every row; gives the hidden state (B, D) behind them."""
        if self._is_compiled:
            return [self._feed_compiled(ids_B1) for ids_B1 in torch.split(ids_BL, 1, dim=1)][-1]
        start, end = self._fed, self._fed + ids_BL.shape[1]
        self._fed = end
        mask = None if self._mask is None else self._mask[..., :end]
        if end - start > 1:
            ahead = _additive(self._places_T[:end] <= self._places_T[start:end, None], self._cache)[None, None]
            mask = ahead if mask is None else mask + ahead
        cos, sin = self._rope_at(self._places_T[start:end] - self._padding_B1)
        return step(self._weights, ids_BL, cos, sin, self._cache[..., :end, :], self._places_T[start:end], mask)

    def _feed_compiled(self, ids_B1: Tensor) -> Tensor:
        at = self._places_T[self._fed : self._fed + 1].clone()  # at the address a kernel wants, whatever the place
        self._fed += 1
        is_seen = (self._places_T <= at) & (self._places_T >= self._padding_B1)
        cos, sin = self._rope_at(at - self._padding_B1)
        mask = _additive(is_seen, self._cache)[:, None, None]
        hidden: Tensor = compiled_step()(self._weights, ids_B1, cos, sin, self._cache, at, mask)
        return hidden

    def _rope_at(self, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rope
        return cos[positions_BL][:, None], sin[positions_BL][:, None]


def step(
    weights: LlamaWeights, ids_BL: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, at_L: Tensor, mask: Tensor | None
) -> Tensor:
    """Write ids into the cache at places `at_L` and give the hidden state (B, D) behind the last.

    The mask is added, (B or 1, 1, L or 1, T). Heads of queries that share keys go as places of one head, which spares
    repeating the cache.
    """
    shape = weights.shape
    hidden = F.embedding(ids_BL, weights.embedding)
    rows, length = ids_BL.shape
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, shape.heads // shape.kv_heads, 1)
    for layer, (keys, values) in zip(weights.layers, cache, strict=True):
        query, key, value = _attended(layer, weights, hidden, cos, sin)
        keys.index_copy_(2, at_L, key)
        values.index_copy_(2, at_L, value)
        grouped = query.reshape(rows, shape.kv_heads, -1, shape.head_width)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=shape.scaling)
        hidden = _finished(layer, weights, hidden, mixed.reshape(query.shape))
    return _normed(hidden[:, -1], weights.final_norm, shape.epsilon)


@lru_cache(maxsize=1)
def compiled_step(backend: str = "inductor") -> Any:
    """Compile `step`, for all models and sizes; other sizes are compiled once more, with sizes left open."""
    return torch.compile(step, backend=backend)


def _attended(
    layer: Layer, weights: LlamaWeights, hidden: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give queries (B, H, L, K), keys and values (B, G, L, K), the first two turned by their positions."""
    shape = weights.shape
    normed = _normed(hidden, layer.norm_before, shape.epsilon)
    mixed = linear(normed, layer.attention).view(*hidden.shape[:2], -1, shape.head_width).transpose(1, 2)
    turned, value = torch.split(mixed, [shape.heads + shape.kv_heads, shape.kv_heads], dim=1)
    left, right = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-right, left], dim=-1) * sin
    query, key = torch.split(turned, [shape.heads, shape.kv_heads], dim=1)
    return query, key, value


def _finished(layer: Layer, weights: LlamaWeights, hidden: Tensor, mixed_BHLK: Tensor) -> Tensor:
    """Add what attention gave, and what the feed-forward makes of the sum."""
    hidden = hidden + linear(mixed_BHLK.transpose(1, 2).flatten(2), layer.output)
    normed = _normed(hidden, layer.norm_between, weights.shape.epsilon)
    gate, up = linear(normed, layer.gated).chunk(2, dim=-1)
    return hidden + linear(F.silu(gate) * up, layer.down)


def _normed(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm as transformers has it: the mean of squares in float32, whatever the precision."""
    if hidden.dtype == torch.float32:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, epsilon)
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)


def _additive(is_seen: Tensor, like: Tensor) -> Tensor:
    """Give the mask that is added to attention: 0 where something is seen."""
    return torch.zeros_like(is_seen, dtype=like.dtype).masked_fill(~is_seen, -torch.inf)
