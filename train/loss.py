"""Weighted cross-entropy from hidden states, without the logits of a whole pack.

At 184,622 ids a pack of 131,072 needs 48 GB of bf16 logits (PEERS.md §3). Here a chunk of ids at a time goes through
the output matrix, and its gradient is computed on the spot, as Liger's kernel does: three matrix products a chunk, as
in the plain way, and memory for one chunk of logits. What is kept for the backward pass is the gradient of the hidden
states and of the matrix, which the backward pass needs anyway.

Shape suffixes: N ids, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ChunkedLoss(torch.autograd.Function):
    """Sum of weight · cross-entropy; also gives the cross-entropy of each id, without a gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, weights_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wants_matrix, wants_hidden = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
        losses_N = torch.empty_like(weights_N)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_matrix_VD = torch.zeros_like(matrix_VD, dtype=torch.float32) if wants_matrix else None
        for start in range(0, len(labels_N), chunk):
            here = slice(start, start + chunk)
            hidden, labels = hidden_ND[here], labels_N[here, None]
            logits = (hidden @ matrix_VD.T).float()
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            losses_N[here] = (normaliser - logits.gather(1, labels)).squeeze(1)
            if grad_hidden_ND is None and grad_matrix_VD is None:
                continue
            gradient = logits.sub_(normaliser).exp_()  # the logits' memory, reused
            gradient.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=gradient.dtype))
            gradient = gradient.mul_(weights_N[here, None]).to(hidden.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[here] = gradient @ matrix_VD
            if grad_matrix_VD is not None:
                grad_matrix_VD += gradient.T @ hidden
        ctx.save_for_backward(grad_hidden_ND, grad_matrix_VD)
        ctx.matrix_dtype = matrix_VD.dtype
        ctx.mark_non_differentiable(losses_N)
        return (losses_N * weights_N).sum(), losses_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        grad_hidden, grad_matrix = ctx.saved_tensors
        return (
            grad_hidden * scale.to(grad_hidden.dtype) if grad_hidden is not None else None,
            (grad_matrix * scale).to(ctx.matrix_dtype) if grad_matrix is not None else None,
            None,
            None,
            None,
        )


def chunked_loss(
    hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, weights_N: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of cross-entropies (differentiable) and each id's own (not), float32.

    Ids whose label is negative are left out and have loss 0. Raises ValueError for labels outside the vocabulary.
    """
    chosen = (labels_N >= 0).nonzero().squeeze(1)
    labels = labels_N[chosen]
    if len(labels) and int(labels.max()) >= matrix_VD.shape[0]:
        raise ValueError(f"label {int(labels.max())} is outside a vocabulary of {matrix_VD.shape[0]}")
    weights = weights_N[chosen].float()
    total, losses = _ChunkedLoss.apply(hidden_ND[chosen], matrix_VD, labels, weights, chunk)
    return total, torch.zeros_like(weights_N, dtype=torch.float32).index_copy(0, chosen, losses)


def plain_loss(hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """Give the same weighted sum through all logits at once: what `chunked_loss` is held against."""
    losses = F.cross_entropy((hidden_ND @ matrix_VD.T).float(), labels_N, ignore_index=-100, reduction="none")
    return (losses * weights_N).sum()


class LossLinear(nn.Linear):
    """An output layer that, given labels, returns the loss in place of logits.

    It is a module, and not a function over its weight, because ZeRO-3 gathers a module's weights when it is called.
    """

    chunk: int

    @classmethod
    def around(cls, layer: nn.Linear, chunk: int) -> LossLinear:
        """Take over the weight of an output layer without bias; raises ValueError if it has one."""
        if getattr(layer, "bias", None) is not None:
            raise ValueError("the output layer has a bias; the chunked loss knows none")
        taken = cls(1, 1, bias=False, device="meta")
        taken.in_features, taken.out_features = layer.in_features, layer.out_features
        taken.weight = layer.weight
        taken.chunk = chunk
        return taken

    def forward(
        self,
        hidden_ND: Tensor,
        labels_N: Tensor | None = None,
        weights_N: Tensor | None = None,
        reweigh: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Any:
        """Return logits, or with labels and weights the loss of these.

        `reweigh` makes other weights of these and each id's own loss, which costs the logits a second time.
        """
        if labels_N is None or weights_N is None:
            return super().forward(hidden_ND)
        if reweigh is not None:
            with torch.no_grad():
                weights_N = reweigh(weights_N, self._loss(hidden_ND, labels_N, weights_N)[1])
        return self._loss(hidden_ND, labels_N, weights_N)

    def _loss(self, hidden_ND: Tensor, labels_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """Where no gradient is wanted none is computed, which autograd alone would not find out."""
        if not torch.is_grad_enabled():
            return chunked_loss(hidden_ND.detach(), self.weight.detach(), labels_N, weights_N, self.chunk)
        return chunked_loss(hidden_ND, self.weight, labels_N, weights_N, self.chunk)
