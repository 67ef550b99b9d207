"""Packed attention: documents in one sequence never see each other.

transformers finds packed documents on its own only without a mask *and* without a cache; with either, attention leaks
across them in silence (logits off by 0.26, PEERS.md §3). So the borders are given here, once a pack, and one function
is registered with transformers for every layer: on CUDA `torch.nn.attention.varlen` (one kernel, bf16), elsewhere and
in fp32 SDPA per document; FlexAttention where a recipe asks for it. Ranks that share a sequence exchange heads for ids
around it (`sequence_parallel.py`), whichever it is. Attention probabilities are not dropped out: no fast kernel does
it, and Emu3's dropout stays on embeddings and residual branches.

Shape suffixes: B = 1 batch, H heads, L ids of all documents, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.train.sequence_parallel import with_all_heads, with_all_ids
from tokenmill.train.world import ALONE, SequenceGroup

NAME = "tokenmill_packed"
Kernel = Literal["auto", "varlen", "sdpa", "flex"]


@dataclass(frozen=True)
class Documents:
    """Where the documents of a sequence begin and end; made once a sequence, read by every layer."""

    borders: tuple[int, ...]
    cu_seqlens: Tensor  # int32 (D + 1,), on the device
    longest: int

    @classmethod
    def at(cls, borders: Sequence[int], device: torch.device | str = "cpu") -> Documents:
        """Build from borders 0 < … < L; raises ValueError unless they ascend from 0."""
        ends = tuple(int(border) for border in borders)
        lengths = [end - start for start, end in pairwise(ends)]
        if not lengths or ends[0] != 0 or min(lengths) < 1:
            raise ValueError(f"borders of documents must ascend from 0, found {ends[:8]}")
        return cls(ends, torch.tensor(ends, dtype=torch.int32, device=device), max(lengths))

    @cached_property
    def block_mask(self) -> Any:
        """What FlexAttention wants to know of them, made when the first layer asks."""
        from tokenmill.train.attention_flex import document_mask

        return document_mask(self.borders, self.cu_seqlens.device)


def packed_attention(
    module: torch.nn.Module,
    query_BHLK: Tensor,
    key_BHLK: Tensor,
    value_BHLK: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    documents: Documents | None = None,
    kernel: Kernel = "auto",
    sequence: SequenceGroup = ALONE,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each document; the signature is that of transformers' attention functions.

    Keys and values may have fewer heads than queries. Of a sequence that ranks share, L is this rank's part and the
    borders are those of the whole. Returns (B, L, H, K). Raises ValueError when borders are missing or are not those of
    the sequence: never fall back to attending across documents.
    """
    length = query_BHLK.shape[2] * sequence.size
    if documents is None or documents.borders[-1] != length or query_BHLK.shape[0] != 1 or attention_mask is not None:
        found = None if documents is None else documents.borders[-1]
        raise ValueError(
            f"packed attention needs one flat sequence, its documents' borders and no mask; got shape "
            f"{tuple(query_BHLK.shape)} on {sequence.size} ranks, borders up to {found}"
        )
    if sequence.size == 1:
        return _attended(query_BHLK, key_BHLK, value_BHLK, documents, scaling, kernel), None
    query_BHLK, key_BHLK, value_BHLK = with_all_ids(query_BHLK, key_BHLK, value_BHLK, sequence)
    return with_all_heads(_attended(query_BHLK, key_BHLK, value_BHLK, documents, scaling, kernel), sequence), None


def check_kernel(kernel: Kernel, device: torch.device) -> None:
    """Refuse a kernel that cannot train on the device that was found; raises RecipeError."""
    if kernel in ("varlen", "flex") and device.type != "cuda":
        raise RecipeError(
            f"train.attention: {kernel} trains on CUDA devices alone, and this is {device.type}; set it to auto"
        )


def register() -> None:
    """Make the function known to transformers under NAME; no mask function goes with it, so none is ever built."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None, kernel: Kernel
) -> Tensor:
    if kernel == "flex":
        from tokenmill.train.attention_flex import flex

        return flex(query, key, value, documents.block_mask, scaling).transpose(1, 2)
    if kernel == "varlen" or (kernel == "auto" and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)):
        return _varlen(query, key, value, documents, scaling)
    return _per_document(query, key, value, documents, scaling)


def _per_document(query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None) -> Tensor:
    """Attend one document after the other; split, not sliced: a slice's gradient is as long as the whole sequence."""
    lengths = [end - start for start, end in pairwise(documents.borders)]
    is_gqa = key.shape[1] != query.shape[1]
    of_documents = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    pieces = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=is_gqa)
        for q, k, v in zip(*of_documents, strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2)


def _varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_LHK, key_LHK, value_LHK = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    named: dict[str, Any] = {}
    if key.shape[1] != query.shape[1]:
        if _takes_fewer_keys():
            named["enable_gqa"] = True
        else:
            times = query.shape[1] // key.shape[1]
            key_LHK, value_LHK = (tensor.repeat_interleave(times, dim=1) for tensor in (key_LHK, value_LHK))
    attended = varlen_attn(
        query_LHK,
        key_LHK,
        value_LHK,
        documents.cu_seqlens,
        documents.cu_seqlens,
        documents.longest,
        documents.longest,
        scale=scaling,
        window_size=(-1, 0),
        **named,
    )
    assert isinstance(attended, Tensor)
    return attended[None]


@cache
def _takes_fewer_keys() -> bool:
    """Tell whether this torch's kernel takes keys of fewer heads than queries: 2.11 does not yet, 2.15 does."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters
