"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each dimension rounded to a few levels.

There is no codebook to search or to learn: a vector of d numbers is bounded by tanh, each rounded to one of L_i whole
numbers, and the digits read as one number (mixed radix, first dimension least significant) are the code. Levels
[8, 8, 8, 5, 5, 5] make 64,000 codes, [8, 8, 8, 8, 8, 4] 131,072. Around it the encoder and decoder of `vision_vqgan`.

Two bounding functions are in use, and weights belong to one of them (`bound`):

* `paper`: appendix A.1, h = (L - 1)(1 - ε) / 2, tanh(z + tan(o / h)) · h - o, with o = 1/2 for even L and 0 for odd.
* `centred`: h = (L - 1)(1 + ε) / 2 and artanh in place of tan, so that z = 0 is 0 (vector-quantize-pytorch, Cosmos).

Shapes: d dimensions, B pictures, C channels, H W pixels, h w codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_folder import VisionFolder, levels_of
from tokenmill.tokenize.vision_vqgan import Decoder, Encoder, VqganShape, vqgan_shape

BOUNDS = ("paper", "centred")
_EPSILON = 1e-3
_MOST_CODES = 2**30  # as many as a vocabulary takes


class FiniteScalars:
    """Vectors (…, d) to codes and back; holds no weights."""

    def __init__(self, levels: Sequence[int], bound: str = "paper") -> None:
        steps = [math.prod(levels[:number]) for number in range(len(levels))]
        self.levels, self.steps = (torch.tensor(list(numbers), device="cpu") for numbers in (levels, steps))
        self.codebook_size = math.prod(levels)
        self.offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).double()
        self.half = (self.levels - 1).double() * (1 + (_EPSILON if bound == "centred" else -_EPSILON)) / 2
        inverse = torch.atanh if bound == "centred" else torch.tan
        self.shift = inverse(self.offset / self.half)

    def bounded(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors within what rounds to L_i whole numbers in each dimension."""
        half, offset, shift = (value.to(vectors) for value in (self.half, self.offset, self.shift))
        return torch.tanh(vectors + shift) * half - offset

    def codes(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the code (…) of each vector."""
        digits = self.bounded(vectors).round().long() + self.levels.to(vectors.device) // 2
        return (digits * self.steps.to(vectors.device)).sum(-1)

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vector (…, d) that a code stands for, each number about within -1..1."""
        levels, steps = (value.to(codes.device) for value in (self.levels, self.steps))
        digits = codes[..., None] // steps % levels
        return (digits - levels // 2) / (levels // 2)


class Fsq(nn.Module):
    """A VQGAN around finite scalars; `quant_conv` and `post_quant_conv` go from its channels to d and back."""

    def __init__(self, shape: VqganShape, levels: Sequence[int], bound: str = "paper") -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quant_conv = nn.Conv2d(shape.z_channels, len(levels), 1)
        self.post_quant_conv = nn.Conv2d(len(levels), shape.z_channels, 1)
        self.scalars = FiniteScalars(levels, bound)
        self.codebook_size, self.spatial_factor = self.scalars.codebook_size, shape.spatial_factor

    def codes(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) of pixels in -1..1; bounding and rounding are in float32 whatever the weights are."""
        features = self.quant_conv(self.encoder(pixels_BCHW)).float()
        return self.scalars.codes(features.movedim(1, -1))

    def pixels(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) of codes."""
        vectors = self.scalars.vectors(codes_Bhw).movedim(-1, 1).to(self.post_quant_conv.weight.dtype)
        result: torch.Tensor = self.decoder(self.post_quant_conv(vectors))
        return result


def build_fsq(folder: VisionFolder) -> Fsq:
    """Build the network that a folder's `config.json` describes, without weights; raises RecipeError."""
    where = f"vision tokenizer {folder.path}"
    levels, bound = levels_of(folder), folder.config.get("bound", "paper")
    if bound not in BOUNDS:
        raise RecipeError(f"{where}: bound {bound!r} is not one of {', '.join(BOUNDS)}")
    if math.prod(levels) > _MOST_CODES:
        raise RecipeError(f"{where}: levels {list(levels)} are {math.prod(levels):,} codes, more than ids can tell")
    return Fsq(vqgan_shape(folder.config, where), levels, bound)
