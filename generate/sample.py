"""Draw pictures and clips from a trained model, never leaving the grammar.

Three things make it fast without touching the model: markers are certain from the position and are not asked for,
logits are computed for the codebook's rows alone, and conditional and unconditional rows of guidance go through in one
batch. Drawings of one grid share a batch; which ones changes none of them.

Shape suffixes: B rows, L ids behind the prompt, D width, V codes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.continuation import Continuation, check_context
from tokenmill.generate.decoding import draw, guide, seed_list, uniforms
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.sampling import Sampling
from tokenmill.generate.text import generate_text
from tokenmill.generate.threads import steady_threads
from tokenmill.tokenize.vocabulary import Vocabulary

__all__ = ["Drawing", "draw_documents", "generate_text", "generate_vision"]

_log = logging.getLogger(__name__)

Ids = NDArray[np.int32]
OnBatch = Callable[[Sequence[int], list[Ids]], None]


def draw_documents(
    model: ExportedModel,
    drawings: Sequence[Drawing],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    num_codes: int | None = None,
    on_batch: OnBatch | None = None,
) -> list[Ids]:
    """Give whole documents, `BOS text SOV meta SOT vision EOV EOS`, in the order asked.

    A document hangs on its drawing and the sampling alone, not on what else is drawn or in which batches.

    Args:
        num_codes: those of the tokenizer that will decode them, where it has fewer than the vocabulary.
        on_batch: is told the numbers of drawings that are done, and their documents, batch by batch.

    Raises:
        RecipeError: a drawing that the model's context does not hold; nothing is drawn then.
        SampleError: begun frames with codes that the vocabulary or the tokenizer does not have.
        RunError: the model gives logits that are no numbers.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; at least one drawing is drawn at a time")
    asked = [_before(model, number, one, num_codes) for number, one in enumerate(drawings)]
    _say_unguided(drawings, sampling)
    documents: dict[int, Ids] = {}
    with steady_threads(model.model):
        for numbers in _batches(drawings, asked, batch_size):
            grammar = _grammar(model.vocabulary, drawings[numbers[0]], num_codes)
            drawn = _draw_batch(model.model, grammar, [drawings[n] for n in numbers], [asked[n] for n in numbers],
                                sampling)  # fmt: skip
            found = [np.concatenate([asked[n], ids]) for n, ids in zip(numbers, drawn, strict=True)]
            documents |= dict(zip(numbers, found, strict=True))
            if on_batch is not None:
                on_batch(numbers, found)
    return [documents[number] for number in range(len(drawings))]


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
    top_p: float = 1.0,
    temperature: float = 1.0,
    guidance: float = 3.0,
    negative: str | Sequence[str] = "",
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    num_codes: int | None = None,
) -> list[Ids]:
    """Draw prompts at one size: `draw_documents` with the prompts' seeds counted up, or given as a list.

    `height`, `width` and `frames` count codes. `negative` is one text for all prompts or one each.
    """
    sampling = Sampling(top_k=top_k, top_p=top_p, temperature=temperature, guidance=guidance)
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(negatives) != len(prompts):
        raise RecipeError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
    seeds = seed_list(seed, len(prompts))
    drawings = [
        Drawing(prompt=text, height=height, width=width, frames=frames, fps=fps, seconds=seconds, negative=against,
                seed=own)
        for text, against, own in zip(prompts, negatives, seeds, strict=True)
    ]  # fmt: skip
    opened = ExportedModel(model=model, vocabulary=vocabulary, vision={})
    return draw_documents(opened, drawings, sampling, batch_size=batch_size, num_codes=num_codes)


def _grammar(vocabulary: Vocabulary, drawing: Drawing, num_codes: int | None) -> VisionGrammar:
    return VisionGrammar(vocabulary, drawing.height, drawing.width, drawing.frames, num_codes)


def _before(model: ExportedModel, number: int, drawing: Drawing, num_codes: int | None) -> Ids:
    """Give the ids before what is drawn, of a drawing that can be drawn."""
    grammar = _grammar(model.vocabulary, drawing, num_codes)
    num_new = grammar.num_ids - drawing.num_begun * grammar.num_frame_ids
    try:
        ids = drawing.ids_before(grammar, drawing.prompt)
        check_context(model.model, len(ids), num_new)
    except RecipeError as error:
        raise RecipeError(f"drawing {number}: {error}") from error
    except SampleError as error:
        raise SampleError(error.reason, f"drawing {number}: {error.message}") from error
    return ids


def _say_unguided(drawings: Sequence[Drawing], sampling: Sampling) -> None:
    """Warn of drawings that guidance leads away from themselves: those without prompt and negative prompt."""
    count = sum(one.prompt == one.negative for one in drawings)
    if count and sampling.guidance != 1:
        told = "guidance %g changes nothing for %d of %d drawings: their prompt is what it leads away from"
        _log.warning(told, sampling.guidance, count, len(drawings))


def _batches(drawings: Sequence[Drawing], asked: Sequence[Ids], size: int) -> Iterator[list[int]]:
    """Give the numbers of drawings that go through together: of one grid, and of like length for little padding."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(drawings):
        alike[one.height, one.width, one.frames, one.num_begun].append(number)
    for numbers in alike.values():
        numbers.sort(key=lambda number: (len(asked[number]), number))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


@torch.inference_mode()
def _draw_batch(
    model: Any, grammar: VisionGrammar, drawings: Sequence[Drawing], asked: list[Ids], sampling: Sampling
) -> Ids:
    """Give the ids (B, L) behind those asked; of equal grids and as many begun frames.

    Logits are linear in the hidden state, so guidance moves the latter: half the work in the widest matrix.
    """
    rows, guided = len(drawings), sampling.guidance != 1
    against = [one.ids_before(grammar, one.negative) for one in drawings] if guided else []
    places = torch.from_numpy(grammar.places(drawings[0].num_begun))
    stream = Continuation(model, [*asked, *against], len(places), grammar.vocabulary.pad)
    codebook = model.lm_head.weight[grammar.codes.start : grammar.codes.stop]
    uniform = uniforms([one.seed for one in drawings], len(places))
    ids_BL = places.to(codebook.device).repeat(rows, 1)
    fed = 0
    for place in torch.nonzero(places < 0)[:, 0].tolist():
        behind = ids_BL[:, fed:place]
        hidden_BD = stream.feed(torch.cat([behind, behind]) if guided else behind) if place else stream.start()
        if guided:
            hidden_BD = guide(hidden_BD[:rows], hidden_BD[rows:], sampling.guidance)
        ids_BL[:, place] = grammar.codes.start + draw((hidden_BD @ codebook.T).float(), uniform[:, place], sampling)
        fed = place
    return ids_BL.cpu().numpy().astype(np.int32)
