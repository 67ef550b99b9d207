"""The codebook's own learning: k-means at the start, moving averages after, and no code left unused.

The port has none of it (EMU3.md §2). Moving averages instead of a codebook loss: no learning rate to tune, and a code
sits at the mean of what it stands for. N latents of width D, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenmill.tokenize.nearest import nearest


@dataclass(slots=True)
class Codebook:
    """Moving averages behind an embedding: `uses_V` latents a step and `sums_VD` of them; `embedding_VD` is trained."""

    embedding_VD: torch.Tensor  # noqa: N815
    uses_V: torch.Tensor  # noqa: N815
    sums_VD: torch.Tensor  # noqa: N815

    @staticmethod
    def of(embedding_VD: torch.Tensor) -> Codebook:
        """Begin with every code used once a step."""
        embedding = embedding_VD.detach()
        return Codebook(embedding, torch.ones(len(embedding)), embedding.clone())

    @torch.no_grad()
    def follow(self, latents_ND: torch.Tensor, codes_N: torch.Tensor, *, decay: float) -> None:
        """Move every code towards the mean of the latents it was chosen for."""
        self.uses_V.mul_(decay).add_(torch.bincount(codes_N, minlength=len(self.uses_V)), alpha=1 - decay)
        self.sums_VD.mul_(decay).index_add_(0, codes_N, latents_ND, alpha=1 - decay)
        self.embedding_VD.copy_(self.sums_VD / self.uses_V.clamp_min(1e-5)[:, None])

    @torch.no_grad()
    def revive(self, latents_ND: torch.Tensor, *, below: float, generator: torch.Generator) -> int:
        """Put codes used less than `below` times the mean onto latents drawn at random; returns how many."""
        mean = self.uses_V.mean()
        dead = torch.nonzero(self.uses_V < below * mean).flatten()[: len(latents_ND)]
        drawn = torch.randperm(len(latents_ND), generator=generator)[: len(dead)]
        self.uses_V[dead] = mean
        self.sums_VD[dead] = latents_ND[drawn] * mean
        self.embedding_VD[dead] = latents_ND[drawn]
        return len(dead)

    @torch.no_grad()
    def settle(self, latents_ND: torch.Tensor, *, generator: torch.Generator, rounds: int = 12) -> None:
        """Lloyd's k-means over `latents`, an empty cluster starting again from a random latent."""
        count = len(self.embedding_VD)
        centres = latents_ND[torch.randperm(len(latents_ND), generator=generator)[:count]].clone()
        if len(centres) < count:
            centres = centres.repeat(-(-count // len(centres)), 1)[:count]
        for _ in range(rounds):
            codes = nearest(latents_ND, centres)
            uses = torch.bincount(codes, minlength=count)
            sums = torch.zeros_like(centres).index_add_(0, codes, latents_ND)
            fresh = latents_ND[torch.randint(len(latents_ND), (count,), generator=generator)]
            centres = torch.where(uses[:, None] > 0, sums / uses.clamp_min(1)[:, None], fresh)
        self.embedding_VD.copy_(centres)
        self.uses_V.fill_(1.0)
        self.sums_VD.copy_(centres)


def perplexity(codes: torch.Tensor, size: int) -> float:
    """How many codes are in use, weighted: e to the entropy of their frequencies."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))
