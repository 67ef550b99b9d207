"""How much a forward pass saves for its backward pass, counted without a GPU, a weight or an id.

The model's own code runs over tensors that have shapes and no memory (torch's meta device), under the hooks through
which autograd saves; so whatever Llama-like model a recipe names is counted as it is written. Two things cannot run
there and are stood in for: attention saves what the kernels save (queries, keys, values, what comes out, a normaliser
for each head and id), and dropout on CUDA saves a mask of bytes. One layer and two are enough, the others are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from tokenmill.settings_train import Checkpointing
from tokenmill.train.attention import Documents
from tokenmill.train.model import Batch, weightless

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

    def kept(self, checkpointing: Checkpointing) -> int:
        """Give what lies on the device after the forward pass; of inputs in the host's memory two, on their way."""
        each = {"none": self.layer, "device": self.layer_input, "cpu": self.layer_input}[checkpointing]
        return self.outside + each * (min(2, self.layers) if checkpointing == "cpu" else self.layers)

    def on_host(self, checkpointing: Checkpointing) -> int:
        """Give what lies in the host's memory then."""
        return self.layers * self.layer_input if checkpointing == "cpu" else 0

    def recomputed(self, checkpointing: Checkpointing) -> int:
        """Give what backward computes again, a layer at a time."""
        return 0 if checkpointing == "none" else self.layer


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


def activation_bytes(
    config: Any, dropout: float, dtype: torch.dtype, tokens: int, *, cuda: bool, shared_by: int = 1
) -> ActivationBytes:
    """Count a model of transformers' configuration over `tokens` ids, on a GPU or a CPU.

    `shared_by` is the number of ranks that share a sequence, of which `tokens` are this one's.
    """
    attention = _Attention(copies_out=not cuda or shared_by > 1, least_heads=shared_by)
    one, two = (_saved(_shortened(config, layers), dropout, dtype, tokens, attention, cuda=cuda) for layers in (1, 2))
    return ActivationBytes(
        outside=one - (two - one),
        layer=two - one,
        layer_input=tokens * config.hidden_size * dtype.itemsize,
        layers=config.num_hidden_layers,
    )


def _saved(config: Any, dropout: float, dtype: torch.dtype, tokens: int, attention: _Attention, *, cuda: bool) -> int:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    config._attn_implementation = _NAME
    model = weightless(config, dropout).to(dtype).train()
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    batch = Batch(ids, ids, torch.empty(tokens, device="meta"), ids, Documents.at((0, tokens), "meta"))
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


class _Saves(torch.autograd.Function):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """Stands in for the attention of transformers' layers.

    What comes out is saved again where documents are joined (on a CPU) or ranks exchange their heads for ids; ranks
    that share a sequence need a head of keys and values each.
    """

    copies_out: bool
    least_heads: int

    def __call__(self, _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        times = math.lcm(key.shape[1], self.least_heads) // key.shape[1]  # as `with_all_ids` does
        if times > 1:
            key, value = (tensor.repeat_interleave(times, 1) for tensor in (key, value))
        out = _Saves.apply(query, key, value)
        return out.clone() if self.copies_out else out, None


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
