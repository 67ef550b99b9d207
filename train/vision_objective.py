"""What a tokenizer is trained for: L2, L1, LPIPS, adversarial, commitment and codebook losses, each by its weight.

The training forward of Emu3VQVAE that the port lacks, its gradient passing straight through the codebook (van den Oord
et al. 2017), and the losses of VQGAN (Esser et al. 2021), which Emu3's tokenizer was trained with (EMU3.md §2).
Commitment and codebook losses are divided by the latents' variance: shrinking the latents does not lower them.

Shapes: B pictures or windows, T frames (1 or 4), N latents of width D.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.func import functional_call
from torch.nn import functional

from tokenmill.settings_tokenizer import CodebookSettings, TokenizerLosses
from tokenmill.tokenize.vision_frames import embedded, latents, nearest_codes, pixels
from tokenmill.train.vision_codebook import gathered, summed
from tokenmill.train.vision_discriminator import PatchDiscriminator, hinge
from tokenmill.train.vision_perceptual import load_lpips

_LARGEST_BALANCE = 1e4


@dataclass(frozen=True, slots=True)
class Made:
    """One forward pass: `loss` to descend, its terms as they enter it, and latents and codes for the codebook."""

    loss: torch.Tensor
    terms: dict[str, float]
    latents_ND: torch.Tensor  # noqa: N815
    codes_N: torch.Tensor | None  # noqa: N815
    reconstruction_BTCHW: torch.Tensor  # noqa: N815


class Objective:
    """The losses of a run, with the networks behind two of them."""

    def __init__(self, losses: TokenizerLosses, codebook: CodebookSettings, *, device: torch.device) -> None:
        """Open LPIPS and draw a discriminator where their weights are above 0; raises RecipeError of LPIPS's file."""
        self._losses, self._codebook = losses, codebook
        self._lpips = (
            load_lpips(Path(losses.perceptual.weights).expanduser()).to(device)
            if losses.perceptual.weight > 0
            else None
        )
        against = losses.adversarial
        self._judge = (
            PatchDiscriminator(channels=against.channels, layers=against.layers).to(device)
            if against.weight > 0
            else None
        )

    def generator(
        self, model: Any, pixels_BTCHW: torch.Tensor, *, step: int, quantized: bool, encoder_learns: bool = True
    ) -> Made:
        """Encode, quantize and decode pixels in -1..1, and weigh what came out.

        Without `encoder_learns` no gradient reaches encoder and codebook. Encoder and search for codes stay in full
        precision under autocast.
        """
        gradients = torch.is_grad_enabled() and encoder_learns
        with torch.autocast(pixels_BTCHW.device.type, enabled=False), torch.set_grad_enabled(gradients):
            found = latents(model, pixels_BTCHW)
        flat = rows_of_latents(found.detach())
        terms: dict[str, torch.Tensor] = {}
        passed, codes = found, None
        if quantized:
            with torch.no_grad(), torch.autocast(pixels_BTCHW.device.type, enabled=False):
                codes = nearest_codes(model, found)
            with torch.set_grad_enabled(gradients):
                chosen = embedded(model, codes)
            passed = found + (chosen - found).detach()
            terms |= self._distances_of_codes(found, chosen, gathered(flat).var())
        decoded = pixels(model, passed, pixels_BTCHW.shape[1]).float()
        likeness = self._likeness(decoded, pixels_BTCHW)
        terms |= likeness
        if self._judge is not None and step >= self._losses.adversarial.start_step:
            likeness_loss = torch.stack(list(likeness.values())).sum()
            terms["adversarial"] = self._adversarial(model, decoded, likeness_loss)
        loss = torch.stack(list(terms.values())).sum()
        figures = {name: float(value.detach()) for name, value in terms.items()}
        return Made(loss, figures, flat, None if codes is None else codes.flatten(), decoded)

    def discriminator(self, pixels_BTCHW: torch.Tensor, made: Made, *, step: int) -> torch.Tensor | None:
        """Return the loss of the network that tells reconstructions apart; None where there is none, or not yet."""
        if self._judge is None or step < self._losses.adversarial.start_step:
            return None
        real, reconstruction = (x.detach().flatten(0, 1) for x in (pixels_BTCHW, made.reconstruction_BTCHW))
        return hinge(self._judge(real), self._judge(reconstruction))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what the discriminator's optimizer trains."""
        return iter(()) if self._judge is None else self._judge.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return the discriminator's tensors; LPIPS's never change."""
        return {} if self._judge is None else dict(self._judge.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        if self._judge is not None:
            self._judge.load_state_dict(state)

    def _distances_of_codes(
        self, found: torch.Tensor, chosen: torch.Tensor, variance: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Latents towards their codes, and codes towards their latents where a loss moves them."""
        terms = {"commitment": self._losses.commitment * functional.mse_loss(found, chosen.detach()) / variance}
        if self._codebook.learning == "loss":
            terms["codebook"] = self._codebook.weight * functional.mse_loss(found.detach(), chosen) / variance
        return terms

    def _likeness(self, decoded_BTCHW: torch.Tensor, pixels_BTCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """How far the reconstruction is from the pixels; LPIPS frame by frame."""
        terms = {"l2": self._losses.l2 * functional.mse_loss(decoded_BTCHW, pixels_BTCHW)}
        if self._losses.l1:
            terms["l1"] = self._losses.l1 * functional.l1_loss(decoded_BTCHW, pixels_BTCHW)
        if self._lpips is not None:
            distances = self._lpips(decoded_BTCHW.flatten(0, 1), pixels_BTCHW.flatten(0, 1))
            terms["perceptual"] = self._losses.perceptual.weight * distances.float().mean()
        return terms

    def _adversarial(self, model: Any, decoded_BTCHW: torch.Tensor, likeness: torch.Tensor) -> torch.Tensor:
        """How sure the discriminator is of the reconstruction, its own weights held fixed."""
        assert self._judge is not None
        held = {name: value.detach() for name, value in self._judge.named_parameters()}
        loss = -functional_call(self._judge, held, (decoded_BTCHW.flatten(0, 1),)).float().mean()
        settings = self._losses.adversarial
        if settings.adaptive and loss.requires_grad:
            loss = balance(likeness, loss, model.decoder.conv_out.weight) * loss
        weighted: torch.Tensor = settings.weight * loss
        return weighted


def rows_of_latents(latents_BSDhw: torch.Tensor) -> torch.Tensor:
    """Lay latents out as rows, (N, D), in the order of their codes."""
    return latents_BSDhw.permute(0, 1, 3, 4, 2).flatten(0, 3)


def balance(likeness: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """VQGAN's adaptive weight: the ratio of both losses' gradients at the decoder's last layer, of the whole batch."""
    norms = [
        mean_over_ranks(torch.autograd.grad(loss, last, retain_graph=True)[0]).norm()
        for loss in (likeness, adversarial)
    ]
    ratio: torch.Tensor = norms[0] / (norms[1] + 1e-4)
    return ratio.clamp(0.0, _LARGEST_BALANCE).detach()


def mean_over_ranks(gradient: torch.Tensor) -> torch.Tensor:
    """Average over the ranks, so that all weigh alike."""
    return summed(gradient) / (dist.get_world_size() if dist.is_initialized() else 1)
