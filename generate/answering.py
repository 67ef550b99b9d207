"""Questions about pictures and clips to answers of an opened model, a batch at a time.

A batch decides nothing: rows are padded with positions of their own, every question draws by its own seed, and one that
cannot be asked falls out before it (tests compare batches of all sizes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.captions.captioner import Answer, Request, Usage
from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.prompts import question_prompt, seeing_prompt
from tokenmill.generate.sample import generate_text
from tokenmill.generate.seeing import Area, Seen, codes_of, look_at
from tokenmill.generate.threads import steady_threads
from tokenmill.tokenize.vision import Codes, VisionTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request without its pixels at full size; `seen` is why it cannot be asked, or what is shown."""

    index: int
    prompt: str
    system: str
    seed: int
    seen: Seen | SampleError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerIds:
    """The ids that were asked, picture and all, and those of the answer, without EOS."""

    prompt: NDArray[np.int32]
    ids: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A model that answers, and how it is asked.

    Attributes:
        picture_area, clip_area: the sizes of what it is shown.
        fps: the rate clips are said to have; None: at which they were taken.
        max_new, temperature, top_k: as `generate_text` takes them.
    """

    model: ExportedModel
    vision: VisionTokenizer
    picture_area: Area
    clip_area: Area
    fps: float | None
    max_new: int
    temperature: float
    top_k: int

    def __post_init__(self) -> None:
        known, needed = self.model.vocabulary.codebook_size, self.vision.codebook_size
        if needed > known:
            raise RecipeError(f"the vision tokenizer has {needed} codes, the model's vocabulary {known}")

    def question(self, request: Request) -> Question:
        """Take from a request what is asked, its picture or clip at the model's size."""
        frames = request.frames
        is_picture = frames is None or len(frames) == 1
        try:
            area = self.picture_area if is_picture else self.clip_area
            seen: Seen | SampleError = look_at(frames, request.seconds, area, self.vision, self.fps)
        except SampleError as error:
            seen = error
        return Question(index=request.index, prompt=request.prompt, system=request.system, seed=request.seed, seen=seen)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch, in its order.

        Raises:
            RunError: there is no room for it, or the model gives no numbers.
        """
        return [
            Answer(index=question.index, error=found)
            if isinstance(found, SampleError)
            else self._answer(question, found)
            for question, found in zip(questions, self.answered(questions), strict=True)
        ]

    def answered(self, questions: Sequence[Question]) -> list[AnswerIds | SampleError]:
        """Answer a batch as `answers` does, in ids."""
        with _explained(), steady_threads(self.model.model):
            prompts = self._prompts(questions)
            asked = [index for index, prompt in enumerate(prompts) if not isinstance(prompt, SampleError)]
            found = generate_text(
                self.model.model,
                self.model.vocabulary,
                [prompts[index] for index in asked],  # type: ignore[misc]
                max_new=self.max_new,
                min_new=1,  # behind a picture without a caption (unconditional) an EOS follows: that is learned too
                top_k=self.top_k,
                temperature=self.temperature,
                seed=[questions[index].seed for index in asked],
                batch_size=max(1, len(asked)),
            )
        ids = dict(zip(asked, found, strict=True))
        return [
            prompt if isinstance(prompt, SampleError) else AnswerIds(prompt=prompt, ids=ids[index])
            for index, prompt in enumerate(prompts)
        ]

    def _prompts(self, questions: Sequence[Question]) -> list[NDArray[np.int32] | SampleError]:
        """Give the ids to continue, or why there are none."""
        shown = [question.seen for question in questions if isinstance(question.seen, Seen)]
        codes = iter(codes_of(shown, self.vision))
        return [
            question.seen
            if isinstance(question.seen, SampleError)
            else self._fitting(self._prompt(question, question.seen, next(codes)))
            for question in questions
        ]

    def _prompt(self, question: Question, seen: Seen, codes_thw: Codes) -> NDArray[np.int32]:
        clip = (seen.fps, seen.seconds)
        vocabulary = self.model.vocabulary
        if question.prompt:
            return question_prompt(vocabulary, question.prompt, codes_thw, *clip, system=question.system)
        return seeing_prompt(vocabulary, codes_thw, *clip)

    def _fitting(self, prompt: NDArray[np.int32]) -> NDArray[np.int32] | SampleError:
        context = self.model.model.config.max_position_embeddings
        if len(prompt) + self.max_new <= context:
            return prompt
        told = f"{len(prompt)} ids, {self.max_new} for the answer (max_new), {context} in the model's context"
        return SampleError("too_long", told)

    def is_cut_off(self, answer: AnswerIds) -> bool:
        """Whether an answer ended for want of room (`max_new`)."""
        return len(answer.ids) == self.max_new

    def _answer(self, question: Question, found: AnswerIds) -> Answer:
        return Answer(
            index=question.index,
            texts=(self.model.vocabulary.text.decode(found.ids.tolist()),),
            usage=Usage(requests=1, input_tokens=len(found.prompt), output_tokens=len(found.ids)),
            finish_reason="length" if self.is_cut_off(found) else "stop",
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError("no room on the device for a batch: lower the captioner's batch_size or max_area") from error
