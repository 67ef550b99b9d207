"""The training forward of Emu3VQVAE that the port lacks: straight-through, L2 and commitment.

L2 alone, because PSNR is what is measured; the commitment is divided by the latents' variance, so that shrinking the
latents does not lower it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tokenmill.tokenize.vision_frames import embedded, latents, pixels


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One forward pass: `loss` to descend, what it is made of, and latents (N, D) and codes (N) for the codebook."""

    loss: torch.Tensor
    l2: torch.Tensor
    latents_ND: torch.Tensor  # noqa: N815
    codes_N: torch.Tensor | None  # noqa: N815


def reconstruct(
    model: Any, pixels_BTCHW: torch.Tensor, *, commitment: float, quantized: bool = True, bfloat16: bool = False
) -> Reconstruction:
    """Encode, quantize (with the gradient passing straight through) and decode; T is 1 or 4, pixels in -1..1.

    `bfloat16` is for the decoder's products alone: the encoder stays in full precision, so that codes do.
    """
    found = latents(model, pixels_BTCHW)
    flat = found.detach().permute(0, 1, 3, 4, 2).flatten(0, 3)
    if not quantized:
        l2 = _l2(model, found, pixels_BTCHW, bfloat16)
        return Reconstruction(l2, l2, flat, None)
    with torch.no_grad():
        codes = model.quantize(found)
        chosen = embedded(model, codes)
    passed = found + (chosen - found).detach()
    l2 = _l2(model, passed, pixels_BTCHW, bfloat16)
    distance = functional.mse_loss(found, chosen) / found.detach().var()
    return Reconstruction(l2 + commitment * distance, l2, flat, codes.flatten())


def _l2(model: Any, quantized: torch.Tensor, pixels_BTCHW: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        decoded = pixels(model, quantized, pixels_BTCHW.shape[1])
    return functional.mse_loss(decoded.float(), pixels_BTCHW)
