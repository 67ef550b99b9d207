"""FlexAttention over packed documents: for CUDA devices and head widths that the varlen kernel does not take.

The blocks that any document touches are worked out from the borders: torch's `create_block_mask` looks at every pair of
ids, 17 billion in a pack of 131,072. On a CPU torch has no backward for it, and the forward pass here is neither
compiled nor fast: it is there to be compared with.

Shape suffixes: B = 1 batch, H heads, L ids of all documents, K width of a head, Q and J blocks of queries and of keys.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_BLOCK = 128


def flex(query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, mask: BlockMask, scaling: float | None) -> Tensor:
    """Attend causally inside the documents of a mask; returns (B, H, L, K)."""
    function = _compiled() if query_BHLK.is_cuda else _plain
    attended: Tensor = function(
        query_BHLK,
        key_BHLK,
        value_BHLK,
        block_mask=mask,
        scale=scaling,
        enable_gqa=key_BHLK.shape[1] != query_BHLK.shape[1],
    )
    return attended


def document_mask(borders: Sequence[int], device: torch.device) -> BlockMask:
    """Tell which blocks of keys each block of queries looks at, wholly or in part, and what it sees in the latter."""
    ends = np.asarray(borders, np.int64)
    partly_QJ, wholly_QJ = _blocks(ends)
    document = torch.from_numpy(np.repeat(np.arange(len(ends) - 1), np.diff(ends))).to(device, torch.int32)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document[query] == document[key]) & (query >= key)

    length = int(ends[-1])
    return BlockMask.from_kv_blocks(
        *_listed(partly_QJ, device),
        *_listed(wholly_QJ, device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def _blocks(ends: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark blocks of keys that a block of queries (rows) looks at in part, and wholly.

    It looks back to where its first query's document begins; blocks that lie inside its last query's document, which
    then is the document of all its queries, are seen by all of them.
    """
    first = np.arange(0, ends[-1], _BLOCK)
    last = first + _BLOCK - 1  # behind the end, in an incomplete block: no document is that of all its queries
    begins, is_same_from = (ends[np.searchsorted(ends, at, side="right") - 1] for at in (first, last))
    queries, keys = np.indices((len(first), len(first)))
    looked_at = (keys >= begins[:, None] // _BLOCK) & (keys <= queries)
    wholly = looked_at & (keys >= -(-is_same_from[:, None] // _BLOCK)) & (keys < queries)
    return looked_at & ~wholly, wholly


def _listed(marked_QJ: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row marks, and their numbers before all others."""
    counts = marked_QJ.sum(axis=1, dtype=np.int32)
    order = np.argsort(~marked_QJ, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def _plain(*arguments: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(*arguments, **named)
