"""Draw pictures, clips and answers from a trained model, never leaving the grammar.

Two things make it fast without touching the model: markers are certain from the position and are not asked for, and
logits are computed for allowed ids only. Conditional and unconditional rows of guidance go through in one batch.

Shape suffixes: B rows, V allowed ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.generate.decoding import Continuation, check_sampling, draw, guide, seed_list, uniforms
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.prompts import drawing_prompt
from tokenmill.tokenize.documents import VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary


def generate_vision(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    height: int,
    width: int,
    frames: int = 1,
    *,
    fps: float | None = None,
    seconds: float | None = None,
    top_k: int = 2048,
    temperature: float = 1.0,
    guidance: float = 3.0,
    negative: str = "",
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    num_codes: int | None = None,
) -> list[NDArray[np.int32]]:
    """Give one whole document a prompt, `BOS text SOV meta SOT vision EOV EOS` (EMU3.md §6 for the defaults).

    `height`, `width` and `frames` count codes; a clip needs fps and seconds. Guidance away from `negative` (empty: the
    unconditional template); 1 turns it off and halves the work. A sample depends on its prompt, settings and seed
    (`seed` + its index, or the list's), not on the batch. `num_codes` are those of the tokenizer that will decode it.
    """
    check_sampling(top_k, temperature)
    grammar = VisionGrammar(vocabulary, height, width, frames, num_codes)
    picture = VisionSegment(frames, height, width, 0, fps, seconds)
    against = drawing_prompt(vocabulary, negative, picture)
    seeds = seed_list(seed, len(prompts))
    documents: list[NDArray[np.int32]] = []
    for batch in _batches(len(prompts), batch_size):
        asked = [drawing_prompt(vocabulary, text, picture) for text in prompts[batch]]
        unconditional = [against] * len(asked) if guidance != 1 else []
        drawn = _draw_vision(model, grammar, asked, unconditional, guidance, top_k, temperature, seeds[batch])
        documents += [np.concatenate(pair).astype(np.int32) for pair in zip(asked, drawn, strict=True)]
    return documents


@torch.inference_mode()
def _draw_vision(
    model: Any,
    grammar: VisionGrammar,
    asked: list[NDArray[np.int32]],
    unconditional: list[NDArray[np.int32]],
    guidance: float,
    top_k: int,
    temperature: float,
    seeds: list[int],
) -> NDArray[np.int64]:
    """Give the ids (B, num_ids) behind SOT."""
    rows = len(asked)
    stream = Continuation(model, [*asked, *unconditional], grammar.num_ids, grammar.vocabulary.pad)
    codebook = model.lm_head.weight[grammar.codes.start : grammar.codes.stop]
    uniform = uniforms(seeds, grammar.num_ids)
    drawn: list[Tensor] = []
    for step, allowed in enumerate(grammar.schedule()):
        if len(allowed) == 1 and allowed != grammar.codes:
            ids_B = torch.full((rows,), allowed.start)
        else:
            logits = (stream.advance() @ codebook.T).float()
            logits_BV = guide(logits[:rows], logits[rows:], guidance) if unconditional else logits
            ids_B = allowed.start + draw(logits_BV, uniform[:, step], top_k=top_k, temperature=temperature).cpu()
        drawn.append(ids_B)
        stream.append(ids_B.repeat(2) if unconditional else ids_B)
    return torch.stack(drawn, dim=1).numpy()


def generate_text(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[NDArray[np.int32]],
    *,
    max_new: int = 256,
    min_new: int = 0,
    top_k: int = 0,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
) -> list[NDArray[np.int32]]:
    """Continue prompts (generate/prompts.py) in text, each to its EOS (not given back) or `max_new` ids.

    Only text ids and EOS are allowed, EOS not before `min_new` ids; the default is greedy, for answers that are scored.
    """
    check_sampling(top_k, temperature)
    seeds = seed_list(seed, len(prompts))
    answers: list[NDArray[np.int32]] = []
    for batch in _batches(len(prompts), batch_size):
        ids_BL = _draw_text(model, vocabulary, prompts[batch], (min_new, max_new), top_k, temperature, seeds[batch])
        answers += [_before_eos(row, vocabulary.eos) for row in ids_BL.astype(np.int32)]
    return answers


@torch.inference_mode()
def _draw_text(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[NDArray[np.int32]],
    num_new: tuple[int, int],
    top_k: int,
    temperature: float,
    seeds: list[int],
) -> NDArray[np.int64]:
    min_new, max_new = num_new
    stream = Continuation(model, prompts, max_new, vocabulary.pad)
    weight = model.lm_head.weight
    uniform = uniforms(seeds, max_new)
    allowed_V = torch.cat([torch.arange(vocabulary.text.size), torch.tensor([vocabulary.eos])])
    finished_B = torch.zeros(len(prompts), dtype=torch.bool)
    drawn: list[Tensor] = []
    for step in range(max_new):
        hidden = stream.advance()
        logits_BV = hidden @ weight[: vocabulary.text.size].T
        if step >= min_new:
            logits_BV = torch.cat([logits_BV, hidden @ weight[vocabulary.eos, None].T], 1)
        index_B = draw(logits_BV.float(), uniform[:, step], top_k=top_k, temperature=temperature).cpu()
        ids_B = allowed_V[index_B].masked_fill(finished_B, vocabulary.eos)
        drawn.append(ids_B)
        finished_B |= ids_B == vocabulary.eos
        if bool(finished_B.all()):
            break
        stream.append(ids_B)
    return torch.stack(drawn, dim=1).numpy() if drawn else np.zeros((len(prompts), 0), np.int64)


def _before_eos(ids: NDArray[np.int32], eos: int) -> NDArray[np.int32]:
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0]] if len(ends) else ids


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
