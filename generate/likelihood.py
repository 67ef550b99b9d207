"""How likely a model holds answers that are given to it: what multiple choice by probability is scored with.

The prompt is read once for all its answers: it holds a picture of 4,096 codes where an answer has some ten ids, so four
choices cost a quarter of four passes. Probabilities are over the whole vocabulary, as in training.

Shape suffixes: N answers, L ids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The sum of log p (nats) over an answer's ids, their number, and whether `generate_text` would have begun so."""

    logprob: float
    num_ids: int
    is_greedy: bool


@torch.inference_mode()
def answer_likelihoods(
    model: Any, vocabulary: Vocabulary, prompt: NDArray[np.int32], answers: Sequence[NDArray[np.int32]]
) -> list[Likelihood]:
    """Tell how likely each answer (ids, without EOS) is behind the prompt; an empty one has a log p of 0.

    Raises:
        RecipeError: prompt and answer need more ids than the model's context holds.
    """
    longest = max((len(answer) for answer in answers), default=0)
    if len(prompt) + longest > model.config.max_position_embeddings:
        needed, context = len(prompt) + longest, model.config.max_position_embeddings
        raise RecipeError(f"prompt and answer need {needed} ids; the model's context holds {context}")
    weight = model.lm_head.weight
    padded = [np.pad(answer, (0, longest - len(answer)), constant_values=vocabulary.pad) for answer in answers]
    ids_NL = torch.from_numpy(np.array(padded, np.int64).reshape(len(answers), longest)).to(weight.device)
    hidden_NLD = _hidden(model, torch.from_numpy(prompt.astype(np.int64)).to(weight.device), ids_NL)
    return [
        _likelihood(hidden_LD[: len(answer)], ids_L[: len(answer)], weight, vocabulary)
        for hidden_LD, ids_L, answer in zip(hidden_NLD, ids_NL, answers, strict=True)
    ]


def _hidden(model: Any, prompt_L: Tensor, ids_NL: Tensor) -> Tensor:
    """Give the state before every id of every answer; padding stands on the right, where nothing attends to it."""
    from transformers import DynamicCache

    count, longest = ids_NL.shape
    cache = DynamicCache(config=model.config)
    read = model.model(input_ids=prompt_L[None], past_key_values=cache, use_cache=True)
    last_N1D: Tensor = read.last_hidden_state[:, -1:].expand(count, -1, -1)
    if longest < 2 or not count:
        return last_N1D
    cache.batch_repeat_interleave(count)
    positions_NL = torch.arange(len(prompt_L), len(prompt_L) + longest - 1, device=ids_NL.device).expand(count, -1)
    output = model.model(input_ids=ids_NL[:, :-1], position_ids=positions_NL, past_key_values=cache, use_cache=True)
    return torch.cat([last_N1D, output.last_hidden_state], dim=1)


def _likelihood(hidden_LD: Tensor, ids_L: Tensor, weight: Tensor, vocabulary: Vocabulary) -> Likelihood:
    logits_LV = (hidden_LD @ weight.T).float()
    of_ids_L = logits_LV.gather(1, ids_L[:, None])[:, 0]
    logprob = (of_ids_L.double() - logits_LV.double().logsumexp(dim=1)).sum()
    best_L = torch.maximum(logits_LV[:, : vocabulary.text.size].amax(dim=1), logits_LV[:, vocabulary.eos])
    return Likelihood(logprob=float(logprob), num_ids=len(ids_L), is_greedy=bool((of_ids_L >= best_L).all()))
