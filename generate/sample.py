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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A drawing with the ids before it, and those of what guidance leads away from."""

    drawing: Drawing
    grammar: VisionGrammar
    before: Ids
    against: Ids | None


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
    asked = [_asked(model, number, one, sampling, num_codes) for number, one in enumerate(drawings)]
    _say_unguided(drawings, sampling)
    documents: dict[int, Ids] = {}
    with steady_threads(model.model):
        for numbers in _batches(asked, batch_size):
            batch = [asked[number] for number in numbers]
            drawn = _draw_batch(model.model, batch, sampling)
            found = [np.concatenate([one.before, ids]) for one, ids in zip(batch, drawn, strict=True)]
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


def _asked(model: ExportedModel, number: int, drawing: Drawing, sampling: Sampling, num_codes: int | None) -> _Asked:
    """Make a drawing ready, or say why it cannot be drawn."""
    grammar = VisionGrammar(model.vocabulary, drawing.height, drawing.width, drawing.frames, num_codes)
    try:
        before = drawing.ids_before(grammar, drawing.prompt)
        against = drawing.ids_before(grammar, drawing.negative) if sampling.guidance != 1 else None
        num_new = grammar.num_ids - drawing.num_begun * grammar.num_frame_ids
        check_context(model.model, max(len(before), 0 if against is None else len(against)), num_new)
    except RecipeError as error:
        raise RecipeError(f"drawing {number}: {error}") from error
    except SampleError as error:
        raise SampleError(error.reason, f"drawing {number}: {error.message}") from error
    return _Asked(drawing=drawing, grammar=grammar, before=before, against=against)


def _say_unguided(drawings: Sequence[Drawing], sampling: Sampling) -> None:
    """Warn of drawings that guidance leads away from themselves: those without prompt and negative prompt."""
    count = sum(one.prompt == one.negative for one in drawings)
    if count and sampling.guidance != 1:
        told = "guidance %g changes nothing for %d of %d drawings: their prompt is what it leads away from"
        _log.warning(told, sampling.guidance, count, len(drawings))


def _batches(asked: Sequence[_Asked], size: int) -> Iterator[list[int]]:
    """Give the numbers of drawings that go through together: of one grid, and of like length for little padding."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(asked):
        drawing = one.drawing
        alike[drawing.height, drawing.width, drawing.frames, drawing.num_begun].append(number)
    for numbers in alike.values():
        numbers.sort(key=lambda number: (len(asked[number].before), number))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


@torch.inference_mode()
def _draw_batch(model: Any, batch: Sequence[_Asked], sampling: Sampling) -> Ids:
    """Give the ids (B, L) behind those asked; of equal grids and as many begun frames.

    Logits are linear in the hidden state, so guidance moves the latter: half the work in the widest matrix.
    """
    rows, grammar = len(batch), batch[0].grammar
    against = [one.against for one in batch if one.against is not None]
    places = torch.from_numpy(grammar.places(batch[0].drawing.num_begun))
    stream = Continuation(model, [*(one.before for one in batch), *against], len(places), grammar.vocabulary.pad)
    codebook = model.lm_head.weight[grammar.codes.start : grammar.codes.stop]
    uniform = uniforms([one.drawing.seed for one in batch], len(places)).to(codebook.device)
    ids_BL = places.to(codebook.device).repeat(rows, 1)
    fed = 0
    for place in torch.nonzero(places < 0)[:, 0].tolist():
        behind = ids_BL[:, fed:place]
        hidden_BD = stream.feed(torch.cat([behind, behind]) if against else behind) if place else stream.start()
        if against:
            hidden_BD = guide(hidden_BD[:rows], hidden_BD[rows:], sampling.guidance)
        ids_BL[:, place] = grammar.codes.start + draw((hidden_BD @ codebook.T).float(), uniform[:, place], sampling)
        fed = place
    return ids_BL.cpu().numpy().astype(np.int32)
