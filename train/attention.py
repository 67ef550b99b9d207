"""Packed attention: documents in one sequence never see each other.

transformers finds packed documents on its own only without a mask *and* without a cache; with either, attention leaks
across them in silence (logits off by 0.26, PEERS.md §3). So the borders are given here, once a pack, and one function
is registered with transformers for every layer: on CUDA `torch.nn.attention.varlen` (one kernel, bf16), elsewhere and
in fp32 SDPA per document. Attention probabilities are not dropped out: no fast kernel does it, and Emu3's dropout stays
on embeddings and residual branches.

Shape suffixes: B = 1 batch, H heads, L ids of all documents, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "tokenmill_packed"


@dataclass(frozen=True, slots=True)
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


def packed_attention(
    module: torch.nn.Module,
    query_BHLK: Tensor,
    key_BHLK: Tensor,
    value_BHLK: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each document; the signature is that of transformers' attention functions.

    Keys and values may have fewer heads than queries. Returns (B, L, H, K). Raises ValueError when borders are missing
    or are not those of the sequence: never fall back to attending across documents.
    """
    length = query_BHLK.shape[2]
    if documents is None or documents.borders[-1] != length or query_BHLK.shape[0] != 1 or attention_mask is not None:
        found = None if documents is None else documents.borders[-1]
        raise ValueError(
            f"packed attention needs one flat sequence, its documents' borders and no mask; got shape "
            f"{tuple(query_BHLK.shape)}, borders up to {found}"
        )
    if query_BHLK.is_cuda and query_BHLK.dtype in (torch.bfloat16, torch.float16):
        return _varlen(query_BHLK, key_BHLK, value_BHLK, documents, scaling), None
    return _per_document(query_BHLK, key_BHLK, value_BHLK, documents, scaling), None


def register() -> None:
    """Make the function known to transformers under NAME; no mask function goes with it, so none is ever built."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)


def _per_document(query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None) -> Tensor:
    pieces = [
        F.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for start, end in pairwise(documents.borders)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2)


def _varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_LHK, key_LHK, value_LHK = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
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
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None]
