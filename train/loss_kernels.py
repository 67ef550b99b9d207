"""What happens to a chunk of logits: losses are read off it, and its gradient takes its place.

Two ways that are held against each other: torch's own operations, anywhere, and Liger's Triton kernel on CUDA, which
goes over the logits twice instead of eight times and leaves bf16 ones in bf16.

Shape suffixes: C ids of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tokenmill.errors import RecipeError


class ChunkLosses(NamedTuple):
    """Of each id (C,), float32: cross-entropy, z-loss if there is any, and what its gradient is still to be scaled by.

    No scale means 1.
    """

    losses: Tensor
    penalties: Tensor | None
    scale: Tensor | None


ChunkKernel: TypeAlias = Callable[[Tensor, Tensor, float, bool], ChunkLosses]
"""(logits_CV, labels_C, z_loss, wants_gradient) → losses; with a gradient, `logits_CV` holds it afterwards."""


def softmax_chunk(logits_CV: Tensor, labels_C: Tensor, z_loss: float, wants_gradient: bool) -> ChunkLosses:
    """Do it with torch's operations, on the memory of the logits if they are fp32 and on one copy if not.

    softmax - 1 at the label is left as e^x - Σ e^x at the label, to be scaled by 1 ÷ Σ e^x: a pass less.
    """
    logits = logits_CV.float()  # the logits themselves if they are fp32
    labels_C1 = labels_C[:, None]
    highest_C1 = logits.amax(dim=1, keepdim=True)
    chosen_C1 = logits.gather(1, labels_C1) - highest_C1
    powers = logits.sub_(highest_C1).exp_()
    sums_C1 = powers.sum(dim=1, keepdim=True)
    losses = (sums_C1.log() - chosen_C1).squeeze(1)
    normalisers_C1 = highest_C1 + sums_C1.log()
    penalties = (z_loss * normalisers_C1**2).squeeze(1) if z_loss else None
    if not wants_gradient:
        return ChunkLosses(losses, penalties, None)
    scale = None
    if z_loss:
        powers.mul_((1.0 + 2.0 * z_loss * normalisers_C1) / sums_C1)
        powers.scatter_add_(1, labels_C1, torch.full_like(sums_C1, -1.0))
    else:
        powers.scatter_add_(1, labels_C1, -sums_C1)
        scale = sums_C1.squeeze(1).reciprocal()
    if powers is not logits_CV:
        logits_CV.copy_(powers)
    return ChunkLosses(losses, penalties, scale)


def liger_chunk(logits_CV: Tensor, labels_C: Tensor, z_loss: float, wants_gradient: bool) -> ChunkLosses:
    """Do it with Liger's kernel, launched directly: its own wrapper waits for the GPU, and rounds losses to bf16."""
    import triton
    from liger_kernel.ops.cross_entropy import MAX_FUSED_SIZE, liger_cross_entropy_kernel

    count, size = logits_CV.shape
    losses = torch.zeros(count, dtype=torch.float32, device=logits_CV.device)
    penalties = torch.zeros_like(losses)
    liger_cross_entropy_kernel[(count,)](
        X_ptr=logits_CV,
        X_stride=logits_CV.stride(0),
        Y_ptr=labels_C,
        Y_stride=labels_C.stride(0),
        weight_ptr=None,
        loss_ptr=losses,
        z_loss_ptr=penalties,
        loss_stride=1,
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=size,
        n_non_ignore=count,
        sum_non_ignore_weight=count,
        weight_sum=0.0,
        ignore_index=-100,
        lse_square_scale=z_loss,
        label_smoothing=0.0,
        reduction="none",
        softcap=None,
        RETURN_Z_LOSS=True,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=min(MAX_FUSED_SIZE, triton.next_power_of_2(size)),
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=wants_gradient,
        num_warps=32,
    )
    return ChunkLosses(losses - penalties, penalties if z_loss else None, None)


def chunk_kernel(wanted: Literal["auto", "chunked", "liger"], device: torch.device) -> ChunkKernel:
    """Give the kernel of that name; `auto` is Liger's where it is installed and the device is a GPU.

    Raises RecipeError for Liger's without a GPU or without the package.
    """
    is_there = find_spec("liger_kernel") is not None
    if wanted == "liger" and device.type != "cuda":
        raise RecipeError(f"train.loss_kernel: liger runs on CUDA, and the device is {device.type}; take chunked")
    if wanted == "liger" and not is_there:
        raise RecipeError('train.loss_kernel: liger is not installed; pip install "tokenmill[liger]", or take chunked')
    if wanted == "chunked" or device.type != "cuda" or not is_there:
        return softmax_chunk
    return liger_chunk
