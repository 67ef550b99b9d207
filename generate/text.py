"""Continue prompts in text: captions, answers, turns of a conversation.

Logits are computed for text ids and EOS alone, so an answer can't wander off into a picture. A row that has said EOS
waits; the batch ends with its last row, not at `max_new`.

Shape suffixes: B rows, L ids, V allowed ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.generate.continuation import Continuation
from tokenmill.generate.decoding import draw, seed_list, uniforms
from tokenmill.generate.sampling import Sampling
from tokenmill.tokenize.vocabulary import Vocabulary

OnIds = Callable[[NDArray[np.int64]], None]


def generate_text(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[NDArray[np.int32]],
    *,
    max_new: int = 256,
    min_new: int = 0,
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    on_ids: OnIds | None = None,
) -> list[NDArray[np.int32]]:
    """Continue prompts (generate/prompts.py) in text, each to its EOS (not given back) or `max_new` ids.

    Only text ids and EOS are allowed, EOS not before `min_new` ids; the default is greedy, for answers that are scored.
    `on_ids` is told the next id of every row of a batch as it is drawn, EOS of rows that wait.
    Raises RecipeError for senseless settings and for prompts that leave no room for `max_new` in the model's context.
    """
    sampling = Sampling(top_k=top_k, top_p=top_p, temperature=temperature, guidance=1.0)
    seeds = seed_list(seed, len(prompts))
    if batch_size < 1 or not 0 <= min_new <= max_new:
        raise RecipeError(f"batch_size {batch_size}, min_new {min_new} and max_new {max_new} make no sense together")
    answers: list[NDArray[np.int32]] = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        ids_BL = _draw_text(model, vocabulary, prompts[batch], (min_new, max_new), sampling, seeds[batch], on_ids)
        answers += [_before_eos(row, vocabulary.eos) for row in ids_BL.astype(np.int32)]
    return answers


@torch.inference_mode()
def _draw_text(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[NDArray[np.int32]],
    num_new: tuple[int, int],
    sampling: Sampling,
    seeds: list[int],
    on_ids: OnIds | None,
) -> NDArray[np.int64]:
    min_new, max_new = num_new
    if max_new == 0:
        return np.zeros((len(prompts), 0), np.int64)
    stream = Continuation(model, prompts, max_new, vocabulary.pad)
    text, eos = model.lm_head.weight[: vocabulary.text.size], model.lm_head.weight[vocabulary.eos, None]
    uniform = uniforms(seeds, max_new).to(text.device)
    finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=text.device)
    drawn: list[Tensor] = []
    hidden = stream.start()
    for step in range(max_new):
        logits_BV = hidden @ text.T
        if step >= min_new:
            logits_BV = torch.cat([logits_BV, hidden @ eos.T], 1)
        index_B = draw(logits_BV.float(), uniform[:, step], sampling)
        is_end_B = finished_B | (index_B == vocabulary.text.size)
        ids_B = index_B.masked_fill(is_end_B, vocabulary.eos)
        drawn.append(ids_B)
        if on_ids is not None:
            on_ids(ids_B.cpu().numpy())
        finished_B = is_end_B
        if step + 1 == max_new or bool(finished_B.all()):
            break
        hidden = stream.feed(ids_B[:, None])
    return torch.stack(drawn, dim=1).cpu().numpy()


def _before_eos(ids: NDArray[np.int32], eos: int) -> NDArray[np.int32]:
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0]] if len(ends) else ids
