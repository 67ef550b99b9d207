"""The weights of a Llama-like model as a step of `llama_decoder.py` reads them.

Matrices that read the same input are one in a small model: that saves starting operations, and a copy of them is small
(5 MB for the preset `tiny`). In a large one they stay apart, where a copy would double the weights and save nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

_KNOWN = {"Emu3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
_CHANGING_POSITIONS = {"dynamic", "longrope"}
_LARGEST_FUSED = 1024

Matrix: TypeAlias = tuple[Tensor, Tensor | None]  # with its bias, if it has one


class Layer(NamedTuple):
    """One layer: the matrices of q, k, v and of gate, up are one each in small models."""

    norm_before: Tensor
    attention: tuple[Matrix, ...]
    output: tuple[Matrix, ...]
    norm_between: Tensor
    gated: tuple[Matrix, ...]
    down: tuple[Matrix, ...]


class Shape(NamedTuple):
    """What of the configuration a step needs."""

    heads: int
    kv_heads: int
    head_width: int
    epsilon: float
    scaling: float


class LlamaWeights(NamedTuple):
    """Everything but the output matrix and the rotation of positions."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    final_norm: Tensor
    shape: Shape

    @classmethod
    def of(cls, model: Any) -> LlamaWeights:
        """Take the weights of a model that `is_known`."""
        inner, attention = model.model, model.model.layers[0].self_attn
        width, head_width = inner.embed_tokens.weight.shape[1], attention.head_dim
        shape = Shape(
            heads=attention.q_proj.weight.shape[0] // head_width,
            kv_heads=attention.k_proj.weight.shape[0] // head_width,
            head_width=head_width,
            epsilon=model.config.rms_norm_eps,
            scaling=attention.scaling,
        )
        layers = tuple(_layer(layer, is_fused=width <= _LARGEST_FUSED) for layer in inner.layers)
        return cls(inner.embed_tokens.weight, layers, inner.norm.weight, shape)


def is_known(model: Any) -> bool:
    """Tell whether a model is no more than embedding, attention over all that was read, SwiGLU and RMSNorm."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or {"unsaid"})
    sees_all = kinds == {"full_attention"} or not window or window >= config.max_position_embeddings
    return (
        type(model).__name__ in _KNOWN
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") not in _CHANGING_POSITIONS
        and sees_all
    )


def linear(read: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """Multiply with matrices that read the same, and give what comes out side by side."""
    if len(matrices) == 1:
        return F.linear(read, *matrices[0])
    return torch.cat([F.linear(read, *matrix) for matrix in matrices], dim=-1)


def _layer(layer: Any, *, is_fused: bool) -> Layer:
    attention, feed = layer.self_attn, layer.mlp
    return Layer(
        norm_before=layer.input_layernorm.weight,
        attention=_together([attention.q_proj, attention.k_proj, attention.v_proj], is_fused=is_fused),
        output=_together([attention.o_proj], is_fused=False),
        norm_between=layer.post_attention_layernorm.weight,
        gated=_together([feed.gate_proj, feed.up_proj], is_fused=is_fused),
        down=_together([feed.down_proj], is_fused=False),
    )


def _together(modules: Sequence[Any], *, is_fused: bool) -> tuple[Matrix, ...]:
    matrices = tuple((module.weight, module.bias) for module in modules)
    if not is_fused:
        return matrices
    biases = [bias for _, bias in matrices if bias is not None]
    return ((torch.cat([weight for weight, _ in matrices]), torch.cat(biases) if biases else None),)
