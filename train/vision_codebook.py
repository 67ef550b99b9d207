"""The codebook's own learning: k-means at the start, moving averages after, and no code left unused.

The port has none of it (EMU3.md §2). Moving averages instead of a codebook loss: no learning rate to tune, and a code
sits at the mean of what it stands for. N latents of width D, V codes. Every rank brings its own latents and ends with
the same codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from tokenmill.tokenize.nearest import nearest

_LEAST_USE = 1e-5


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
        return Codebook(embedding, torch.ones(len(embedding), device=embedding.device), embedding.clone())

    @torch.no_grad()
    def follow(self, latents_ND: torch.Tensor, codes_N: torch.Tensor, *, decay: float) -> None:
        """Move every code towards the mean of the latents it was chosen for."""
        uses = torch.bincount(codes_N, minlength=len(self.uses_V)).to(self.uses_V.dtype)
        sums = torch.zeros_like(self.sums_VD).index_add_(0, codes_N, latents_ND)
        self.uses_V.mul_(decay).add_(summed(uses), alpha=1 - decay)
        self.sums_VD.mul_(decay).add_(summed(sums), alpha=1 - decay)
        means_VD = self.sums_VD / self.uses_V.clamp_min(_LEAST_USE)[:, None]
        # A code long unused stays where it is: its sum and its use are both nearly nothing.
        self.embedding_VD.copy_(torch.where(self.uses_V[:, None] > _LEAST_USE, means_VD, self.embedding_VD))

    @torch.no_grad()
    def count(self, codes_N: torch.Tensor, *, decay: float) -> None:
        """Keep count of the uses alone, where a loss moves the codes."""
        uses = torch.bincount(codes_N, minlength=len(self.uses_V)).to(self.uses_V.dtype)
        self.uses_V.mul_(decay).add_(summed(uses), alpha=1 - decay)

    @torch.no_grad()
    def revive(self, latents_ND: torch.Tensor, *, below: float, generator: torch.Generator) -> int:
        """Give new places to codes used less than `below` times the mean; returns how many.

        Latents of all ranks' batch are drawn for them, each once. More dead codes than latents go near the codes used
        most, at a distance like that between a code and its latents, so that these are split.
        """
        mean = self.uses_V.mean()
        dead = torch.nonzero(self.uses_V < below * mean).flatten()
        if not len(dead):
            return 0
        latents_ND = gathered(latents_ND)
        drawn = torch.randperm(len(latents_ND), generator=generator)[: len(dead)].to(latents_ND.device)
        most = self.uses_V.argsort(descending=True, stable=True)[: max(1, len(self.uses_V) - len(dead))]
        beside = most[torch.arange(len(dead) - len(drawn), device=most.device) % len(most)]
        places = torch.cat([latents_ND[drawn], self._near(beside, latents_ND, generator)])
        self.uses_V[dead] = mean
        self.sums_VD[dead] = places * mean
        self.embedding_VD[dead] = places
        return len(dead)

    def _near(self, codes: torch.Tensor, latents_ND: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a place near each of `codes`."""
        noise = torch.randn((len(codes), self.embedding_VD.shape[1]), generator=generator).to(latents_ND.device)
        chosen = self.embedding_VD[nearest(latents_ND, self.embedding_VD)]
        return self.embedding_VD[codes] + (latents_ND - chosen).square().mean().sqrt() * noise

    @torch.no_grad()
    def settle(self, latents_ND: torch.Tensor, *, generator: torch.Generator, rounds: int = 12) -> None:
        """Lloyd's k-means over `latents`, an empty cluster starting again from a random latent."""
        count, latents_ND = len(self.embedding_VD), gathered(latents_ND)
        centres = latents_ND[torch.randperm(len(latents_ND), generator=generator)[:count]].clone()
        if len(centres) < count:
            centres = centres.repeat(-(-count // len(centres)), 1)[:count]
        for _ in range(rounds):
            codes = nearest(latents_ND, centres)
            uses = torch.bincount(codes, minlength=count)
            sums = torch.zeros_like(centres).index_add_(0, codes, latents_ND)
            fresh = latents_ND[torch.randint(len(latents_ND), (count,), generator=generator).to(latents_ND.device)]
            centres = torch.where(uses[:, None] > 0, sums / uses.clamp_min(1)[:, None], fresh)
        self.embedding_VD.copy_(centres)
        self.uses_V.fill_(1.0)
        self.sums_VD.copy_(centres)


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Add a tensor up over the ranks, in place."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gathered(rows_ND: torch.Tensor) -> torch.Tensor:
    """Put the rows of all ranks together, in their order; each brings as many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_ND
    parts = [torch.empty_like(rows_ND) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows_ND.contiguous())
    return torch.cat(parts)


def perplexity(codes: torch.Tensor, size: int) -> float:
    """How many codes are in use, weighted: e to the entropy of their frequencies."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))
