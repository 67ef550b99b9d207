"""IBQ, index backpropagation quantization (Shi et al. 2024, arXiv 2412.02692): Emu3.5's vision tokenizer.

A VQGAN of 16×16 pixels a code with a codebook of 131,072 (SEED-Voken: up to 262,144) vectors of 256 numbers. A code is
the vector of the **largest inner product** with the latent, not the nearest one: training takes a softmax over those
products, and its largest is theirs (SEED-Voken `IndexPropagationQuantize`, Emu3.5 `vision_tokenizer/ibq.py`: logits
= einsum over z and the embedding, argmax). Neither is normalised. Of equal products the lowest code is taken.

The search holds 4 MB of products at a time on a CPU, where the released code holds all of them: 537 MB, three times
over, for a picture of 512². It runs in float32 whatever the weights are: 131,072 products in bfloat16 would be
full of ties.

Shapes: B pictures, N latents, K codes, D numbers of a vector, C channels, H W pixels, h w codes.
"""

from __future__ import annotations

import torch
from torch import nn

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_folder import VisionFolder
from tokenmill.tokenize.vision_vqgan import Decoder, Encoder, VqganShape, vqgan_shape

_AT_ONCE = {"cpu": (256, 4096)}  # latents and codes of the products in memory, by kind of device
_AT_ONCE_ELSEWHERE = (4096, 16_384)  # 256 MB: small products leave an accelerator idle
_NEVER = ("l2_normalize", "cosine_similarity", "remap")  # settings that no released tokenizer has


class Ibq(nn.Module):
    """The released network, by the names of its weights."""

    def __init__(self, shape: VqganShape, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quant_conv = nn.Conv2d(shape.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, shape.z_channels, 1)
        self.quantize = _Codebook(codebook_size, embed_dim)
        self.codebook_size, self.spatial_factor = codebook_size, shape.spatial_factor

    def codes(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) of pixels in -1..1."""
        latents_BDhw = self.quant_conv(self.encoder(pixels_BCHW))
        latents_ND = latents_BDhw.movedim(1, -1).flatten(0, 2).float()
        found = largest_products(latents_ND, self.quantize.embedding.weight.float())
        return found.view(latents_BDhw.shape[0], *latents_BDhw.shape[2:])

    def pixels(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) of codes."""
        vectors = self.quantize.embedding(codes_Bhw).movedim(-1, 1).to(self.post_quant_conv.weight.dtype)
        result: torch.Tensor = self.decoder(self.post_quant_conv(vectors))
        return result


class _Codebook(nn.Module):
    """Holds `quantize.embedding.weight`, which is left as memory holds it: weights are loaded, never drawn."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, embed_dim, _weight=torch.empty(codebook_size, embed_dim))


def largest_products(latents_ND: torch.Tensor, codebook_KD: torch.Tensor) -> torch.Tensor:
    """Return for each latent the code of its largest inner product, (N,), the lowest of equal ones."""
    vectors, codes = _AT_ONCE.get(latents_ND.device.type, _AT_ONCE_ELSEWHERE)
    return torch.cat([_largest(part, codebook_KD, codes) for part in torch.split(latents_ND, vectors)])


def _largest(latents_ND: torch.Tensor, codebook_KD: torch.Tensor, at_once: int) -> torch.Tensor:
    best = torch.full((len(latents_ND),), -torch.inf, device=latents_ND.device)
    codes = torch.zeros(len(latents_ND), dtype=torch.long, device=latents_ND.device)
    for first in range(0, len(codebook_KD), at_once):
        value, index = (latents_ND @ codebook_KD[first : first + at_once].T).max(1)
        is_larger = value > best
        best = torch.where(is_larger, value, best)
        codes = torch.where(is_larger, index + first, codes)
    return codes


def build_ibq(folder: VisionFolder) -> Ibq:
    """Build the network that a folder's configuration describes, without weights; raises RecipeError."""
    where = f"vision tokenizer {folder.path}"
    for key in _NEVER:
        if folder.config.get(key):
            raise RecipeError(f"{where}: {key} is {folder.config[key]!r}; no released tokenizer has it, nor is it here")
    sizes = {key: folder.config.get(key) for key in ("n_embed", "embed_dim")}
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise RecipeError(f"{where}: {key} must be a whole number above 0, found {value!r}")
    return Ibq(vqgan_shape(folder.config, where), folder.config["n_embed"], folder.config["embed_dim"])
