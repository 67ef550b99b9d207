"""How much a forward pass saves for its backward pass, counted without a GPU, a weight or an id.

The model's own code runs over tensors that have shapes and no memory (torch's meta device), under the hooks through
which autograd saves; so whatever Llama-like model a recipe names is counted as it is written. Two things cannot run
there and are stood in for: attention saves what the kernels save (queries, keys, values, what comes out and a
normaliser for each head and id), and dropout on CUDA saves a mask of one byte. One layer and two are enough, the
others are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from tokenmill.train.attention import Documents
from tokenmill.train.model import Batch, PackedModel

_NAME = "tokenmill_counted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationBytes:
    """Bytes that one forward pass leaves on a rank, without the output layer.

    Attributes:
        outside: saved around the layers: embedding, last norm.
        layer: saved in one layer; layer_input: of these, what enters it.
    """

    outside: int
    layer: int
    layer_input: int
    layers: int

    def kept(self, *, checkpointing: bool) -> int:
        """Give what lies there when the forward pass is over."""
        return self.outside + self.layers * (self.layer_input if checkpointing else self.layer)

    def recomputed(self, *, checkpointing: bool) -> int:
        """Give what backward computes again, a layer at a time."""
        return self.layer if checkpointing else 0


class SavedTensors:
    """Counts the memory that autograd saves while it is entered, each storage once, weights left out."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self._kept: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    @contextmanager
    def counting(self) -> Iterator[None]:
        with saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in self._weights:
            self._kept.setdefault(storage, tensor)  # holding it keeps its storage from being given to another
        return tensor


def activation_bytes(model: Callable[[Any], PackedModel], config: Any, tokens: int, *, cuda: bool) -> ActivationBytes:
    """Count a model of transformers' configuration over one sequence of `tokens` ids.

    `model` builds one of any configuration; it is called with the meta device as default.
    """
    one, two = (_saved(model, _shortened(config, layers), tokens, cuda=cuda) for layers in (1, 2))
    dtype: torch.dtype = config.dtype
    return ActivationBytes(
        outside=one - (two - one),
        layer=two - one,
        layer_input=tokens * config.hidden_size * dtype.itemsize,
        layers=config.num_hidden_layers,
    )


def _saved(build: Callable[[Any], PackedModel], config: Any, tokens: int, *, cuda: bool) -> int:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention_on_cuda if cuda else _attention_on_cpu)
    config._attn_implementation = _NAME
    with torch.device("meta"):
        model = build(config).to(config.dtype).train()
        ids = torch.empty(tokens, dtype=torch.int64)
        batch = Batch(ids, ids, torch.empty(tokens), ids, Documents.at((0, tokens), "meta"))
    saved = SavedTensors(model)
    with saved.counting(), _DropoutOf(cuda=cuda):
        hidden = model.hidden(batch)
    del hidden
    return saved.bytes


def _shortened(config: Any, layers: int) -> Any:
    short = deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    return short


class _Attention(torch.autograd.Function):
    """Saves what a flash kernel saves; gives (B, L, H, K) without computing anything."""

    @staticmethod
    def forward(ctx: Any, query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor) -> Tensor:
        out_BLHK = torch.empty_like(query_BHLK.transpose(1, 2), memory_format=torch.contiguous_format)
        normaliser_BHL = torch.empty(query_BHLK.shape[:3], dtype=torch.float32, device=query_BHLK.device)
        ctx.save_for_backward(query_BHLK, key_BHLK, value_BHLK, out_BLHK, normaliser_BHL)
        return out_BLHK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("only counted")


def _attention_on_cuda(_module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _Attention.apply(query, key, value), None


def _attention_on_cpu(_module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _Attention.apply(query, key, value).clone(), None  # what documents give is joined


class _DropoutOf(TorchFunctionMode):
    """Lets dropout on the meta device save what it saves on CUDA: a mask of bytes, not of numbers."""

    def __init__(self, *, cuda: bool) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout and self._cuda:
            rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return torch.native_dropout(args[0], rate, True)[0] if rate else args[0]
        return function(*args, **kwargs)
