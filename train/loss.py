"""Weighted cross-entropy from hidden states, without the logits of a whole pack.

At 184,622 ids a pack of 131,072 needs 48 GB of bf16 logits (PEERS.md §3). Here a chunk of ids at a time goes through
the output matrix, and its gradient is computed on the spot, as Liger's kernel does: three matrix products a chunk, as
in the plain way, and memory for one chunk of logits, the same for all chunks. What is kept for the backward pass is the
gradient of the hidden states and of the matrix, which the backward pass needs anyway. Touching 0.4 GB again and again
instead of 6 GB once takes 0.6 of the plain way's time (`benchmarks/loss.py`).

Shape suffixes: N ids, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.settings_train import TrainSettings
from tokenmill.train.loss_kernels import ChunkKernel, chunk_kernel, softmax_chunk


class _ChunkedLoss(torch.autograd.Function):
    """Sum of weight · (cross-entropy + z-loss); also gives the cross-entropy of each id, without a gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, weights_N: Tensor, chunk: int,
        kernel: ChunkKernel, z_loss: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        grads = _Gradients.wanted(ctx, hidden_ND, matrix_VD)
        losses_N, penalties_N = torch.empty_like(weights_N), torch.zeros_like(weights_N)
        logits_CV = hidden_ND.new_empty(min(chunk, len(labels_N)), len(matrix_VD))
        for start in range(0, len(labels_N), chunk):
            here = slice(start, start + chunk)
            hidden = hidden_ND[here]
            logits = torch.mm(hidden, matrix_VD.T, out=logits_CV[: len(hidden)])
            found = kernel(logits, labels_N[here], z_loss, grads is not None)
            losses_N[here] = found.losses
            if found.penalties is not None:
                penalties_N[here] = found.penalties
            if grads is not None:
                scale = weights_N[here] if found.scale is None else weights_N[here] * found.scale
                grads.add(here, logits, hidden, matrix_VD, scale[:, None])
        ctx.gradients = grads
        ctx.mark_non_differentiable(losses_N)
        return ((losses_N + penalties_N) * weights_N).sum(), losses_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.gradients = ctx.gradients, None
        if kept is None:
            raise RuntimeError("the chunked loss keeps its gradients for one backward pass, and it was taken")
        return (*kept.scaled(gradients[0]), None, None, None, None, None)


class _Gradients:
    """What a loss keeps for its backward pass; that of the matrix gathers in fp32, whatever the matrix is in."""

    def __init__(self, hidden_ND: Tensor | None, matrix_VD: Tensor | None) -> None:
        self._hidden_ND = None if hidden_ND is None else torch.empty_like(hidden_ND)
        self._matrix_VD = None if matrix_VD is None else torch.zeros_like(matrix_VD, dtype=torch.float32)
        self._matrix_dtype = None if matrix_VD is None else matrix_VD.dtype

    @classmethod
    def wanted(cls, ctx: Any, hidden_ND: Tensor, matrix_VD: Tensor) -> _Gradients | None:
        """Make room for those that autograd asks for; None if it asks for none."""
        wants_hidden, wants_matrix = ctx.needs_input_grad[:2]
        if not wants_hidden and not wants_matrix:
            return None
        return cls(hidden_ND if wants_hidden else None, matrix_VD if wants_matrix else None)

    def add(self, here: slice, gradient_CV: Tensor, hidden_CD: Tensor, matrix_VD: Tensor, scale_C1: Tensor) -> None:
        """Take in a chunk, whose gradient by logits is scale · gradient; scaling the narrow side saves a pass."""
        if self._hidden_ND is not None:
            self._hidden_ND[here] = torch.mm(gradient_CV, matrix_VD) * scale_C1
        if self._matrix_VD is None:
            return
        scaled_CD = (hidden_CD * scale_C1).to(hidden_CD.dtype)
        if gradient_CV.dtype == torch.float32:
            self._matrix_VD.addmm_(gradient_CV.T, scaled_CD)
        else:
            self._matrix_VD.add_(torch.mm(gradient_CV.T, scaled_CD))

    def scaled(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Give both gradients times a factor, on the memory they are on."""
        hidden, matrix = self._hidden_ND, self._matrix_VD
        return (
            None if hidden is None else hidden.mul_(factor.to(hidden.dtype)),
            None if matrix is None else matrix.mul_(factor).to(self._matrix_dtype),
        )


def chunked_loss(
    hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, weights_N: Tensor, chunk: int, *,
    kernel: ChunkKernel = softmax_chunk, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the weighted sum of cross-entropies (differentiable) and each id's own (not), float32.

    With z_loss the sum also has z_loss · log² of the softmax's normaliser for each id (PaLM, section 5), by the same
    weights; the cross-entropies are without. Ids whose label is negative are left out and have loss 0. One backward
    pass. Raises ValueError for labels outside the vocabulary.
    """
    chosen = (labels_N >= 0).nonzero().squeeze(1)
    labels = labels_N[chosen]
    if len(labels) and int(labels.max()) >= matrix_VD.shape[0]:
        raise ValueError(f"label {int(labels.max())} is outside a vocabulary of {matrix_VD.shape[0]}")
    weights = weights_N[chosen].float()
    total, losses = _ChunkedLoss.apply(hidden_ND[chosen], matrix_VD, labels, weights, chunk, kernel, z_loss)
    return total, torch.zeros_like(weights_N, dtype=torch.float32).index_copy(0, chosen, losses)


def plain_loss(
    hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, weights_N: Tensor, z_loss: float = 0.0
) -> Tensor:
    """Give the same weighted sum through all logits at once: what `chunked_loss` is held against."""
    logits = (hidden_ND @ matrix_VD.T).float()
    losses = F.cross_entropy(logits, labels_N, ignore_index=-100, reduction="none")
    if z_loss:
        losses = losses + torch.where(labels_N >= 0, z_loss * logits.logsumexp(dim=-1) ** 2, 0.0)
    return (losses * weights_N).sum()


class LossLinear(nn.Linear):
    """An output layer that, given labels, returns the loss in place of logits.

    It is a module, and not a function over its weight, because ZeRO-3 gathers a module's weights when it is called.
    """

    chunk: int
    kernel: ChunkKernel
    z_loss: float

    @classmethod
    def around(cls, layer: nn.Linear, chunk: int) -> LossLinear:
        """Take over the weight of an output layer without bias; raises ValueError if it has one."""
        if getattr(layer, "bias", None) is not None:
            raise ValueError("the output layer has a bias; the chunked loss knows none")
        taken = cls(1, 1, bias=False, device="meta")
        taken.in_features, taken.out_features = layer.in_features, layer.out_features
        taken.weight = layer.weight
        taken.chunk, taken.kernel, taken.z_loss = chunk, softmax_chunk, 0.0
        return taken

    def set_up(self, settings: TrainSettings, device: torch.device) -> None:
        """Take the kernel and the z-loss that a run asks for; raises RecipeError as `chunk_kernel`."""
        self.kernel, self.z_loss = chunk_kernel(settings.loss_kernel, device), settings.z_loss

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
        matrix_VD: Tensor = self.weight
        if not torch.is_grad_enabled():  # autograd alone would not find out that no gradient is wanted
            hidden_ND, matrix_VD = hidden_ND.detach(), matrix_VD.detach()
        return chunked_loss(
            hidden_ND, matrix_VD, labels_N, weights_N, self.chunk, kernel=self.kernel, z_loss=self.z_loss
        )
