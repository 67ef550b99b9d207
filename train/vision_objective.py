"""The training forward of Emu3VQVAE that the port lacks: straight-through, distances of pixels, commitment.

The commitment is divided by the latents' variance, so that shrinking the latents does not lower it. N latents of width
D.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tokenmill.settings_tokenizer import CodebookSettings, TokenizerLosses
from tokenmill.tokenize.vision_frames import embedded, latents, pixels
from tokenmill.train.vision_codebook import gathered


@dataclass(frozen=True, slots=True)
class Made:
    """One forward pass: `loss` to descend, its terms, and latents and codes for the codebook."""

    loss: torch.Tensor
    terms: dict[str, float]
    latents_ND: torch.Tensor  # noqa: N815
    codes_N: torch.Tensor | None  # noqa: N815
    reconstruction_BTCHW: torch.Tensor  # noqa: N815


class Objective:
    """What a tokenizer is trained for."""

    def __init__(self, losses: TokenizerLosses, codebook: CodebookSettings, *, device: torch.device) -> None:
        self._losses, self._codebook, self._device = losses, codebook, device

    def generator(self, model: Any, pixels_BTCHW: torch.Tensor, *, step: int, quantized: bool) -> Made:
        """Encode, quantize (with the gradient passing straight through) and decode; T is 1 or 4, pixels in -1..1.

        Encoder and search for codes stay in full precision under autocast.
        """
        with torch.autocast(pixels_BTCHW.device.type, enabled=False):
            found = latents(model, pixels_BTCHW)
        flat = found.detach().permute(0, 1, 3, 4, 2).flatten(0, 3)
        terms: dict[str, torch.Tensor] = {}
        passed, codes = found, None
        if quantized:
            with torch.no_grad(), torch.autocast(pixels_BTCHW.device.type, enabled=False):
                codes = model.quantize(found)
            chosen = embedded(model, codes)
            passed = found + (chosen - found).detach()
            variance = gathered(flat).var()
            terms["commitment"] = self._losses.commitment * functional.mse_loss(found, chosen.detach()) / variance
            if self._codebook.learning == "loss":
                apart = functional.mse_loss(found.detach(), chosen)
                terms["codebook"] = self._codebook.weight * apart / variance
        decoded = pixels(model, passed, pixels_BTCHW.shape[1]).float()
        terms["l2"] = self._losses.l2 * functional.mse_loss(decoded, pixels_BTCHW)
        if self._losses.l1:
            terms["l1"] = self._losses.l1 * functional.l1_loss(decoded, pixels_BTCHW)
        loss = torch.stack(list(terms.values())).sum()
        figures = {name: float(value.detach()) for name, value in terms.items()}
        return Made(loss, figures, flat, None if codes is None else codes.flatten(), decoded)

    def discriminator(self, pixels_BTCHW: torch.Tensor, made: Made, *, step: int) -> torch.Tensor | None:
        """Return the loss of the network that tells reconstructions apart, or None where there is none."""
        return None

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what the discriminator's optimizer trains."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return the discriminator's tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
