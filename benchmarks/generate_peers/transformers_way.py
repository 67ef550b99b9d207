"""How transformers draws inside a grammar with guidance: `generate`, a prefix function and the guidance processor.

This is the released code's loop (EMU3.md §4 and §6), for batches too: prompts are padded on the left, unconditional
ones run through the processor's own cache. The prefix function is asked in Python for every row and id; as the released
one it gives all codes as a tuple, or as a tensor, which is what a user who has profiled it would do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.generation import PrefixConstrainedLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor

from tokenmill.tokenize.vocabulary import Vocabulary

Ids = NDArray[np.int32]
Allowed = Callable[[int, Tensor], Sequence[int] | Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Latent frames, rows and columns of codes."""

    height: int
    width: int
    frames: int = 1

    @property
    def num_ids(self) -> int:
        """Ids behind SOT."""
        return self.frames * (self.height * (self.width + 1) + 1) + 2


def prefix_function(vocabulary: Vocabulary, grid: Grid, *, as_tensor: bool = False) -> Allowed:
    """Say what may come next, from the ids so far; frames of a clip follow each other as a picture's rows do."""
    codes = range(vocabulary.vision_base, vocabulary.size)
    visual_ids: Any = torch.tensor(codes) if as_tensor else tuple(codes)
    starts: dict[int, int] = {}
    frame = grid.height * (grid.width + 1) + 1

    def allowed(row: int, ids: Tensor) -> Sequence[int] | Tensor:
        if row not in starts:
            starts[row] = int(torch.nonzero(ids == vocabulary.sot)[0, 0])
        offset = len(ids) - starts[row]
        past = offset - grid.frames * frame
        if past > 0:
            return ([vocabulary.eov], [vocabulary.eos], [vocabulary.pad])[min(past, 3) - 1]
        within = (offset - 1) % frame + 1
        if within == frame:
            return [vocabulary.eof]
        if within % (grid.width + 1) == 0:
            return [vocabulary.eol]
        return visual_ids  # type: ignore[no-any-return]

    return allowed


def draw(
    model: Any,
    vocabulary: Vocabulary,
    grid: Grid,
    prompts: Sequence[Ids],
    against: Sequence[Ids] = (),
    *,
    guidance: float = 1.0,
    top_k: int = 0,
    temperature: float = 0.0,
    as_tensor: bool = False,
) -> list[Ids]:
    """Continue a batch of prompts to the end of their pictures; temperature 0 takes the likeliest.

    Of prompts with begun frames `grid` is the whole clip's. Gives the whole documents.
    """
    ids, mask = (tensor.to(model.device) for tensor in _padded(prompts, vocabulary.pad))
    allowed = prefix_function(vocabulary, grid, as_tensor=as_tensor)
    processors: list[Any] = [PrefixConstrainedLogitsProcessor(allowed, num_beams=1)]
    if guidance != 1:
        negative, negative_mask = (tensor.to(model.device) for tensor in _padded(against, vocabulary.pad))
        processors.insert(
            0,
            UnbatchedClassifierFreeGuidanceLogitsProcessor(
                guidance, model, unconditional_ids=negative, unconditional_attention_mask=negative_mask
            ),
        )
    sampled = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
    begun = len(prompts[0]) - 1 - int(np.flatnonzero(prompts[0] == vocabulary.sot)[0])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.generate(
            ids,
            attention_mask=mask,
            logits_processor=processors,
            max_new_tokens=grid.num_ids - begun,
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
            **sampled,
        )
    rows = found.cpu().numpy().astype(np.int32)
    return [row[len(row) - grid.num_ids + begun - len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _padded(prompts: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = np.stack([np.pad(prompt, (longest - len(prompt), 0), constant_values=pad) for prompt in prompts])
    seen = np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts])
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(seen.astype(np.int64))
