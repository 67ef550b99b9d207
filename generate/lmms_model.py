"""The adapter by which lmms-eval, the field's harness, asks a model of ours: `lmms-eval --model tokenmill`.

Two classes, as the harness has two kinds of tasks. Chat models get messages, in which pictures stand where the text
speaks of them, but no multiple choice by probability; simple ones (`--force_simple`) get that, and all pictures first.
Splitting among processes, caching of responses and scoring stay the harness's: this file only translates.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from tokenmill.errors import RunError, SampleError
from tokenmill.generate.lmms_content import Eyes
from tokenmill.generate.lmms_place import batch_size_of, device_of, join_processes, resized
from tokenmill.generate.lmms_requests import Asked, Given, chat_request, given_answer, next_round, simple_request
from tokenmill.generate.opened_model import open_model
from tokenmill.generate.replying import Posed, Replier, Reply, likelihoods, manner_of, replies

_log = logging.getLogger(__name__)


class TokenmillSimple(lmms):  # type: ignore[misc]
    """Gets a text and what is shown with it, which stands before the text.

    Args:
        pretrained: an export (`checkpoints/<run>/export`) or the folder of its run, local or in any store.
        device: `cuda`, `cuda:1`, `cpu`; by default CUDA where there is one. Several processes take a device each.
        dtype: of the weights; by default bfloat16 on CUDA, float32 on the CPU.
        batch_size: conversations at a time; answers do not hang on it.
        max_batch_size: not needed; the harness gives it to every model.
        max_new_tokens: of answers whose task does not say.
        min_area, max_area, max_aspect: sizes of pictures and frames; by default those the model was trained on.
        fps: the rate clips are said to have; by default the one at which their frames were taken.
        max_frames: of a clip; as many whole windows of the tokenizer's are taken of it.
        system_prompt: what the system says, or a file that holds it; by default the sentence of the template.
        blank_line_ends: whether a blank line ends an answer where a task's `until` has one. The harness adds it to
            every task that names no end, and long answers have paragraphs.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int = 256,
        min_area: int | None = None,
        max_area: int | None = None,
        max_aspect: float | None = None,
        fps: float | None = None,
        max_frames: int = 8,
        system_prompt: str = "",
        blank_line_ends: bool = False,
    ) -> None:
        super().__init__()
        self.accelerator = join_processes()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._device = device_of(device, self.accelerator)
        chosen = dtype or ("bfloat16" if self._device.type == "cuda" else "float32")
        opened = open_model(str(pretrained), device=str(self._device), dtype=chosen)
        own = partial(resized, min_area=min_area, max_area=max_area, max_aspect=max_aspect)
        self._replier: Replier | None = Replier(model=opened.model, vision=opened.vision)
        self._eyes = Eyes(
            vision=opened.vision,
            picture_area=own(opened.area("image")),
            clip_area=own(opened.area("video")),
            fps=fps,
            max_frames=int(max_frames),
        )
        self._batch_size = batch_size_of(batch_size)
        self._manner = partial(manner_of, max_new=int(max_new_tokens), blank_line_ends=bool(blank_line_ends))
        self._system = self._resolve_system_prompt(str(system_prompt)) if system_prompt else ""

    @property
    def device(self) -> torch.device:
        """Where the model is; the harness gathers its counts there."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Conversations at a time."""
        return self._batch_size

    def clean(self) -> None:
        """Let go of the model: the harness may start a judge on the device."""
        self._replier = None
        super().clean()

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer each request once; one that cannot be asked gets an empty answer, and a line in the log."""
        asked = [self._read(request) for request in requests]
        return [_result(reply) for reply in self._replies([self._posed(one) for one in _repeated(asked)])]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Answer round by round, all requests that go on together, until their task ends them."""
        asked: dict[int, Asked] = {number: self._read(request) for number, request in enumerate(requests)}
        said: dict[int, list[str]] = {number: [] for number in asked}
        while asked:
            found = self._replies([self._posed(one) for one in asked.values()])
            for number, reply in zip(list(asked), found, strict=True):
                said[number].append(reply.text)
                following = next_round(asked.pop(number), said[number])
                if following is not None:
                    asked[number] = following
        return list(said.values())

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Tell how likely given answers are, and whether each is the likeliest; those of one question together.

        Of multiple choice the harness takes the *least* number for the answer, so it gets what its own models give: the
        loss, in nats an id. Its `Instance` takes pairs for texts (0.7.3), unless they come in a `GenerationResult`.
        """
        given = [given_answer(request.args, self.task_dict) for request in requests]
        found: list[GenerationResult] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Likelihoods") as bar:
            for _, group in groupby(given, key=lambda one: one.question):
                same = list(group)
                found += [GenerationResult(text=pair) for pair in self._likely(same)]
                bar.update(len(same))
        return found

    def _likely(self, given: Sequence[Given]) -> list[tuple[float, bool]]:
        likely = likelihoods(self._opened(), self._posed(given[0].asked), [one.answer for one in given])
        if isinstance(likely, SampleError):
            return [(one.score(None), False) for one in given]
        return [(one.score(found), found.is_greedy) for one, found in zip(given, likely, strict=True)]

    def _read(self, request: Instance) -> Asked:
        return simple_request(request.args, self.task_dict)

    def _posed(self, asked: Asked) -> Posed:
        return Posed(
            name=asked.name,
            turns=partial(asked.turns, self._eyes, self._system),
            manner=self._manner(asked.settings),
            seed=asked.seed,
        )

    def _replies(self, posed: Sequence[Posed]) -> list[Reply]:
        with tqdm(total=len(posed), disable=self.rank != 0, desc="Answers") as bar:
            found = replies(self._opened(), posed, self._batch_size, bar.update)
        lost = Counter(reply.error.reason for reply in found if reply.error is not None)
        if lost:
            why = ", ".join(f"{number} {reason}" for reason, number in lost.items())
            _log.warning("%d of %d requests count as empty answers: %s", lost.total(), len(found), why)
        return found

    def _opened(self) -> Replier:
        if self._replier is None:
            raise RunError("the model was let go of; build it again")
        return self._replier


class TokenmillChat(TokenmillSimple):
    """Gets messages: pictures and clips stand where the task puts them between the words."""

    is_simple = False

    def _read(self, request: Instance) -> Asked:
        return chat_request(request.args, self.task_dict)


def _repeated(asked: Sequence[Asked]) -> list[Asked]:
    """Number the requests for several answers to one question, so that each draws by a seed of its own."""
    seen: Counter[str] = Counter()
    numbered = []
    for one in asked:
        numbered.append(one.again(seen[one.name]))
        seen[one.name] += 1
    return numbered


def _result(reply: Reply) -> GenerationResult:
    counts = TokenCounts(input_tokens=reply.num_prompt, output_tokens=reply.num_new)
    return GenerationResult(text=reply.text, token_counts=counts)
