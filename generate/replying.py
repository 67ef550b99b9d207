"""Replies to conversations that are opened one batch at a time: the work behind a benchmark harness.

A harness hands over a list of thousands of requests; their pictures are decoded when their batch is asked, so a batch's
pixels are held at most. One that cannot be asked (too long, no picture, a sound) is a reply with an error: it costs its
own score and no other's.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.conversing import Turn, conversation_prompts
from tokenmill.generate.likelihood import Likelihood, answer_likelihoods
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.text import generate_text
from tokenmill.generate.threads import steady_threads
from tokenmill.tokenize.vision import VisionTokenizer

_log = logging.getLogger(__name__)
_READ = frozenset({"max_new_tokens", "temperature", "do_sample", "top_k", "top_p", "num_beams", "until"})
_LEAST_ROOM = 16  # ids that must be left for an answer; tasks ask for up to 1,024 and get as many as there are
_OUTSIDE = frozenset({"image_aspect_ratio", "use_cache", "num_return_sequences"})  # of others' models


@dataclass(frozen=True, slots=True, kw_only=True)
class Replier:
    """Who replies: a model, and the tokenizer that makes its codes."""

    model: ExportedModel
    vision: VisionTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How an answer of up to `max_new` ids is drawn: the likeliest at temperature 0; it ends before any of `until`."""

    max_new: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    until: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Posed:
    """A conversation that is still closed: `name` tells which it is, `turns` opens its pictures."""

    name: str
    turns: Callable[[], Sequence[Turn]]
    manner: Manner
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of it; `text` is empty where there is an `error`."""

    text: str = ""
    num_prompt: int = 0
    num_new: int = 0
    error: SampleError | None = None


def manner_of(settings: Mapping[str, Any], *, max_new: int, blank_line_ends: bool = False) -> Manner:
    """Read generation settings as transformers and the harnesses name them; `max_new` is for those that say nothing.

    A lone blank line in `until` is what lmms-eval adds to every task; unless it shall end an answer it is left out.

    Raises:
        RecipeError: beams, or a setting that is not known here: it might change the answers.
    """
    unknown = sorted(set(settings) - _READ - _OUTSIDE)
    if unknown:
        raise RecipeError(
            f"generation settings {', '.join(unknown)} are not known; known are {', '.join(sorted(_READ))}"
        )
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    beams = int(settings.get("num_beams") or 1)
    if beams != 1:
        raise RecipeError(f"num_beams {beams}: there is no search by beams; set it to 1")
    until = settings.get("until") or ()
    ends = (until,) if isinstance(until, str) else tuple(until)
    return Manner(
        max_new=int(settings.get("max_new_tokens") or max_new),
        temperature=temperature,
        top_k=int(settings.get("top_k") or 0) if temperature else 0,
        top_p=float(settings.get("top_p") or 1.0) if temperature else 1.0,
        until=tuple(end for end in ends if end and (blank_line_ends or end != "\n\n")),
    )


def replies(
    replier: Replier, posed: Sequence[Posed], batch_size: int, on_done: Callable[[int], object] = lambda count: None
) -> list[Reply]:
    """Reply to each, in the order given; those of one manner are asked together. `on_done` hears of every batch.

    Raises:
        RunError: the model gives no numbers.
    """
    alike: dict[Manner, list[int]] = defaultdict(list)
    for index, one in enumerate(posed):
        alike[one.manner].append(index)
    found: dict[int, Reply] = {}
    for manner, indexes in alike.items():
        for start in range(0, len(indexes), batch_size):
            batch = indexes[start : start + batch_size]
            found |= zip(batch, _batch(replier, [posed[index] for index in batch], manner), strict=True)
            on_done(len(batch))
    return [found[index] for index in range(len(posed))]


def _batch(replier: Replier, posed: Sequence[Posed], manner: Manner) -> list[Reply]:
    prompts = opened_prompts(replier, posed, min(manner.max_new, _LEAST_ROOM))
    answered = _answered(replier, posed, prompts, manner)
    decode = replier.model.vocabulary.text.decode
    return [
        Reply(error=prompt)
        if isinstance(prompt, SampleError)
        else Reply(
            text=before_any(decode(answered[index].tolist()), manner.until),
            num_prompt=len(prompt),
            num_new=len(answered[index]),
        )
        for index, prompt in enumerate(prompts)
    ]


def _answered(
    replier: Replier, posed: Sequence[Posed], prompts: Sequence[NDArray[np.int32] | SampleError], manner: Manner
) -> dict[int, NDArray[np.int32]]:
    """Continue the prompts there are, those with equal room for an answer together, so that no other decides of it."""
    model, vocabulary = replier.model.model, replier.model.vocabulary
    context = model.config.max_position_embeddings
    rooms: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, SampleError):
            rooms[min(manner.max_new, context - len(prompt))].append(index)
    found: dict[int, NDArray[np.int32]] = {}
    with steady_threads(model):
        for room, indexes in rooms.items():
            drawn = generate_text(
                model,
                vocabulary,
                [prompts[index] for index in indexes],  # type: ignore[misc]
                max_new=room,
                top_k=manner.top_k,
                top_p=manner.top_p,
                temperature=manner.temperature,
                seed=[posed[index].seed for index in indexes],
                batch_size=len(indexes),
            )
            found |= zip(indexes, drawn, strict=True)
    return found


def opened_prompts(replier: Replier, posed: Sequence[Posed], room: int) -> list[NDArray[np.int32] | SampleError]:
    """Open a batch and give the ids of each, or why there are none, which is logged by its name.

    `room` ids of the context must be left for an answer.
    """
    turns: list[Sequence[Turn] | SampleError] = [_opened(one) for one in posed]
    clear = [one for one in turns if not isinstance(one, SampleError)]
    ids = iter(conversation_prompts(clear, replier.model.vocabulary, replier.vision))
    context = replier.model.model.config.max_position_embeddings
    prompts = [one if isinstance(one, SampleError) else _fitting(next(ids), room, context) for one in turns]
    for one, prompt in zip(posed, prompts, strict=True):
        if isinstance(prompt, SampleError):
            _log.warning("%s cannot be asked: %s (%s)", one.name, prompt.reason, prompt.message)
    return prompts


def _opened(posed: Posed) -> Sequence[Turn] | SampleError:
    try:
        return posed.turns()
    except SampleError as error:
        return error


def _fitting(prompt: NDArray[np.int32] | SampleError, room: int, context: int) -> NDArray[np.int32] | SampleError:
    if isinstance(prompt, SampleError) or len(prompt) + room <= context:
        return prompt
    told = f"{len(prompt)} ids and {room} for the answer, {context} in the model's context"
    return SampleError("too_long", told)


def before_any(text: str, ends: Sequence[str]) -> str:
    """Give the text before the first of `ends` that stands in it."""
    places = [text.find(end) for end in ends]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def likelihoods(replier: Replier, posed: Posed, answers: Sequence[str]) -> list[Likelihood] | SampleError:
    """Tell how likely each answer is behind a conversation, or why it cannot be asked."""
    ids = [np.array(replier.model.vocabulary.text.encode(answer), np.int32) for answer in answers]
    [prompt] = opened_prompts(replier, [posed], max(map(len, ids), default=0))
    if isinstance(prompt, SampleError):
        return prompt
    with steady_threads(replier.model.model):
        return answer_likelihoods(replier.model.model, replier.model.vocabulary, prompt, ids)
