"""The network that tells reconstructions from pictures, patch by patch (Isola et al. 2017; Esser et al. 2021).

The PatchGAN of VQGAN: four-pixel convolutions, strides of two, one verdict for every patch (70 pixels wide with three
layers). One thing differs: group norm in place of batch norm. Batch norm's statistics hang on what else a rank's share
of a batch holds, so two ranks would not do what one does, and they would have to be saved, averaged and frozen.
Instance norm would hide the contrast that reconstructions get wrong first.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from tokenmill.errors import RecipeError

_WIDEST = 8  # times `channels`
_SEED = 0


class PatchDiscriminator(nn.Module):
    """Verdicts about patches: above 0 for pictures, below for reconstructions."""

    def __init__(self, *, channels: int, layers: int) -> None:
        super().__init__()
        self.min_side_px = 3 * 2**layers
        stack: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        inner = channels
        for layer in range(1, layers + 1):
            outer = channels * min(2**layer, _WIDEST)
            stride = 2 if layer < layers else 1
            stack += [
                nn.Conv2d(inner, outer, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, outer), outer),
                nn.LeakyReLU(0.2),
            ]
            inner = outer
        self.stack = nn.Sequential(*stack, nn.Conv2d(inner, 1, 4, padding=1))
        self._draw_weights()

    def forward(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """Judge pictures in -1..1; returns (N, 1, h, w).

        Raises:
            RecipeError: pictures too small for one verdict.
        """
        if min(pixels_N3HW.shape[-2:]) < self.min_side_px:
            raise RecipeError(
                f"tokenizer.losses.adversarial.layers: {self.min_side_px} px a side are needed "
                f"(found {min(pixels_N3HW.shape[-2:])}); fewer layers, or a larger tokenizer.batches.side"
            )
        verdicts: torch.Tensor = self.stack(pixels_N3HW)
        return verdicts

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Weights from N(0, 0.02), norms from N(1, 0.02), equal on all ranks whatever they drew before."""
        generator = torch.Generator().manual_seed(_SEED)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0.0, 0.02, generator=generator)
            elif isinstance(module, nn.GroupNorm):
                module.weight.normal_(1.0, 0.02, generator=generator)
            if isinstance(module, nn.Conv2d | nn.GroupNorm) and module.bias is not None:
                module.bias.zero_()


def hinge(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: 0 where pictures are judged above 1 and reconstructions below -1."""
    return (functional.relu(1.0 - real).mean() + functional.relu(1.0 + made).mean()) / 2
