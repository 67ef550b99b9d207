"""Sequence parallelism after Ulysses: a pack too long for one rank is shared by neighbours, each with some of its ids.

All of a model but attention works on single ids, so a rank needs only its own part there. Around attention heads are
exchanged for ids: a rank gives away its ids of other ranks' heads and gets all ids of its own, so that the packed
function sees whole documents and stays the same (DeepSpeed's Ulysses wrapper leaks between packed documents, PEERS.md
§3). It costs two exchanges a layer and direction, of ids · (heads + 2 · key heads + heads) · width ÷ N each way, and N
is at most the number of heads.

Shape suffixes: B = 1 batch, H heads of all ranks, L ids of all ranks, l = L/N ids of this one, K width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tokenmill.train.packs import NO_LABEL, PackArrays
from tokenmill.train.world import SequenceGroup


def part_of(arrays: PackArrays, sequence: SequenceGroup, pad: int) -> PackArrays:
    """Return this rank's part of packs: its ids, labels, weights and positions.

    Borders, `num_tokens` and `squares` stay those of the whole, since attention sees all of it. A length that the
    ranks do not divide is filled up by a document of padding. All parts together hold each id once.
    """
    if sequence.size == 1:
        return arrays
    length = len(arrays.input_ids)
    missing = -length % sequence.size
    size = (length + missing) // sequence.size
    mine = slice(sequence.rank * size, (sequence.rank + 1) * size)
    borders = arrays.cu_seqlens
    return arrays._replace(
        input_ids=np.pad(arrays.input_ids, (0, missing), constant_values=pad)[mine],
        labels=np.pad(arrays.labels, (0, missing), constant_values=NO_LABEL)[mine],
        loss_weight=np.pad(arrays.loss_weight, (0, missing))[mine],
        position_ids=np.concatenate([arrays.position_ids, np.arange(missing, dtype=np.int64)])[mine],
        cu_seqlens=np.append(borders, np.int32(length + missing)) if missing else borders,
    )


def with_all_ids(query: Tensor, key: Tensor, value: Tensor, sequence: SequenceGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange all heads (B, H, l, K) of this rank's ids for this rank's heads (B, H/N, L, K) of all ids.

    Key heads that N does not divide are repeated first, as far as it takes; the queries of a rank then find theirs
    among its key heads.
    """
    repeats = math.lcm(key.shape[1], sequence.size) // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) if repeats > 1 else tensor for tensor in (key, value))
    _, _, length, width = query.shape
    by_rank = [x.reshape(sequence.size, -1, length, width).transpose(1, 2) for x in (query, key, value)]
    heads = [tensor.shape[2] for tensor in by_rank]
    received_NlHK = _Exchange.apply(torch.cat(by_rank, dim=2), sequence.group)
    query, key, value = received_NlHK.flatten(0, 1).split(heads, dim=1)
    return query.transpose(0, 1)[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def with_all_heads(attended_BLHK: Tensor, sequence: SequenceGroup) -> Tensor:
    """Exchange this rank's heads (B, L, H/N, K) of all ids for all heads (B, l, H, K) of this rank's ids."""
    by_rank_NlHK = attended_BLHK.reshape(sequence.size, -1, *attended_BLHK.shape[2:])
    received_NlHK: Tensor = _Exchange.apply(by_rank_NlHK, sequence.group)
    return received_NlHK.transpose(0, 1).flatten(1, 2)[None]


class _Exchange(torch.autograd.Function):
    """Send part i of N to rank i and get one of each; gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(gradients[0], ctx.group), None


def _exchanged(parts: Tensor, group: Any) -> Tensor:
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received
