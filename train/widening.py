"""A given model's embedding and output matrix, laid out for another vocabulary.

A fresh row is the mean of the model's rows and a tenth of their spread: the model then takes new ids for average ones,
so what it knew of text costs hardly more than before (rows from N(0, 0.02) may win over all that it has learned), and
the noise tells them apart from the first step on (Hewitt 2021, "Initializing New Word Embeddings").

Shape suffixes: V ids of the vocabulary, R rows of the model, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_NOISE = 0.1  # of the rows' deviation


@torch.no_grad()
def widen(causal: Any, kept_V: NDArray[np.int64], seed: int) -> None:
    """Give a model a row for each id: the one that `kept_V` names, or a fresh one where it is negative.

    Tied matrices stay tied.
    """
    inner, outer = causal.get_input_embeddings(), causal.get_output_embeddings()
    is_tied = outer.weight is inner.weight
    inner.weight = nn.Parameter(widened(inner.weight, kept_V, seed))
    inner.num_embeddings = len(kept_V)
    inner.padding_idx = None  # an id that no longer pads would get no gradient
    outer.weight = inner.weight if is_tied else nn.Parameter(widened(outer.weight, kept_V, seed + 1))
    outer.out_features = len(kept_V)
    causal.config.vocab_size = len(kept_V)


def widened(rows_RD: Tensor, kept_V: NDArray[np.int64], seed: int) -> Tensor:
    """Return the rows that are kept and fresh ones; equal arguments give equal rows."""
    kept = torch.from_numpy(kept_V)
    spread_D, mean_D = torch.std_mean(rows_RD, dim=0)
    found_VD = rows_RD[kept.clamp_min(0)]
    fresh = kept < 0
    noise = torch.randn(int(fresh.sum()), rows_RD.shape[1], generator=torch.Generator().manual_seed(seed))
    found_VD[fresh] = (mean_D + _NOISE * spread_D * noise).to(found_VD.dtype)
    return found_VD
