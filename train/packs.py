"""Packs as arrays: what the model reads of a plan's rows.

Documents follow one another in one flat sequence; positions restart with each, labels are shifted inside each, and the
place where one ends predicts nothing. The rest of the context is padding, which is a document of its own to attention
and weighs nothing. Labels, weights and borders are made here, once, so that nothing downstream shifts or guesses.

Shape suffixes: L ids of one or more packs, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenmill.tokenize.documents import Assembled

NO_LABEL = -100
FILLER_LENGTH = 8


class PackArrays(NamedTuple):
    """One pack, or several end to end. A tuple, since a frozen dataclass takes four times as long to make.

    Attributes:
        input_ids: int64 (L,).
        labels: int64 (L,), the next id of the same document, or -100.
        loss_weight: float32 (L,), what predicting labels[i] weighs.
        position_ids: int64 (L,), from 0 in every document.
        cu_seqlens: int32 (D + 1,), where documents begin and end; the padding is the last of them.
        num_tokens: ids that are not padding.
        squares: sum of length² over the documents.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss_weight: NDArray[np.float32]
    position_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    num_tokens: int
    squares: int


def build_pack(documents: Sequence[Assembled], context: int, pad: int) -> PackArrays:
    """Lay documents end to end and pad to the context; raises ValueError if they do not fit it."""
    lengths = [len(document.ids) for document in documents]
    used = sum(lengths)
    if used > context:
        raise ValueError(f"documents of {used} ids do not fit a context of {context}")
    ids = np.full(context, pad, np.int64)
    labels = np.full(context, NO_LABEL, np.int64)
    weights = np.zeros(context, np.float32)
    positions = np.arange(context, dtype=np.int64)
    start = 0
    for document, length in zip(documents, lengths, strict=True):
        end = start + length
        ids[start:end] = document.ids
        labels[start : end - 1] = document.ids[1:]
        weights[start : end - 1] = document.weights[1:]
        positions[start:end] -= start
        start = end
    positions[used:] -= used
    borders = np.cumsum([0, *lengths, *([context - used] if used < context else [])], dtype=np.int32)
    labels[weights == 0.0] = NO_LABEL
    return PackArrays(
        input_ids=ids,
        labels=labels,
        loss_weight=weights,
        position_ids=positions,
        cu_seqlens=borders,
        num_tokens=used,
        squares=sum(length * length for length in lengths),
    )


def filler_pack(pad: int) -> PackArrays:
    """Give the smallest pack of padding: it keeps ranks in step, weighs nothing and costs next to nothing."""
    return build_pack([], FILLER_LENGTH, pad)


def join_packs(packs: Sequence[PackArrays]) -> PackArrays:
    """Lay packs end to end as one flat sequence."""
    sizes = np.cumsum([0, *(len(pack.input_ids) for pack in packs)])
    borders = [pack.cu_seqlens[1:] + offset for pack, offset in zip(packs, sizes[:-1], strict=True)]
    return PackArrays(
        input_ids=np.concatenate([pack.input_ids for pack in packs]),
        labels=np.concatenate([pack.labels for pack in packs]),
        loss_weight=np.concatenate([pack.loss_weight for pack in packs]),
        position_ids=np.concatenate([pack.position_ids for pack in packs]),
        cu_seqlens=np.concatenate([np.zeros(1, np.int32), *borders]).astype(np.int32),
        num_tokens=sum(pack.num_tokens for pack in packs),
        squares=sum(pack.squares for pack in packs),
    )
