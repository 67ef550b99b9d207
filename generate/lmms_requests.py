"""The arguments of lmms-eval's requests, by their place (version 0.7.3), as one thing: who asks what, in which manner.

    generate_until               simple  (context, settings, visuals_of, number, task, split)
                                 chat    (context, messages_of, settings, number, task, split)
    generate_until_multi_round   simple  (context, settings, visuals_of, text_of, number, task, split)
                                 chat    as generate_until
    loglikelihood                simple  (context, answer or answer_of, visuals_of, number, task, split)

The documents lie in `task_dict[task][split]`; a picture in one is decoded when it is looked up, so that happens in
`turns`, which is called for a batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tokenmill.errors import RecipeError
from tokenmill.generate.conversing import Turn
from tokenmill.generate.likelihood import Likelihood
from tokenmill.generate.lmms_content import Eyes
from tokenmill.manifests.identity import digest_of

Turns: TypeAlias = Callable[[Eyes, str], Sequence[Turn]]  # what is seen, and what the system says


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        name: `task/split/number`.
        turns: opens the document and gives the conversation.
        settings: of the generation, as the task has them.
        rounds: what tells the next round of this from the answers so far and what the task kept of the round before.
        repeat: which of several answers to the same question.
    """

    name: str
    turns: Turns
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: Callable[[Sequence[str], Any], tuple[Turns, Any] | None] | None = None
    kept: Any = None
    repeat: int = 0

    @property
    def seed(self) -> int:
        """Its own, the same in every run."""
        return int(digest_of([self.name, self.repeat])[:8], 16)

    def again(self, repeat: int) -> Asked:
        """Return the same question for another answer."""
        return replace(self, repeat=repeat)


@dataclass(frozen=True, kw_only=True)
class Given:
    """An answer whose likelihood is asked, and its question.

    Attributes:
        question: equal for the answers to one question.
        is_choice: one of several, of which the harness takes that of the least number; else it wants log p.
    """

    question: tuple[str, str]
    asked: Asked
    answer: str
    is_choice: bool

    def score(self, found: Likelihood | None) -> float:
        """Return the number the harness goes by; the worst there is for what could not be asked."""
        if found is None:
            return math.inf if self.is_choice else -math.inf
        return -found.logprob / max(found.num_ids, 1) if self.is_choice else found.logprob


def simple_request(arguments: Sequence[Any], documents: Mapping[str, Any]) -> Asked:
    """Read what a simple model gets to generate."""
    context, settings, visuals_of, *text_of, number, task, split = arguments

    def document() -> Any:
        return documents[task][split][number]

    def turns(eyes: Eyes, system: str) -> list[Turn]:
        return eyes.question(context, visuals_of(document()) if visuals_of else (), system)

    def following(said: Sequence[str], kept: Any) -> tuple[Turns, Any] | None:
        found = text_of[0](document(), previous_output=list(said), round_idx=len(said), previous_round_info=kept)
        visuals, text, is_over, _, kept = found
        return None if is_over else (lambda eyes, system: eyes.question(text, visuals, system), kept)

    rounds = following if text_of else None
    return Asked(name=f"{task}/{split}/{number}", turns=turns, settings=settings, rounds=rounds)


def chat_request(arguments: Sequence[Any], documents: Mapping[str, Any]) -> Asked:
    """Read what a chat model gets to generate, in one round or more."""
    _, messages_of, settings, number, task, split = arguments

    def document() -> Any:
        return documents[task][split][number]

    def turns(eyes: Eyes, system: str) -> list[Turn]:
        return eyes.turns(messages_of(document()), system)

    def following(said: Sequence[str], kept: Any) -> tuple[Turns, Any] | None:
        found = messages_of(document(), round_idx=len(said), previous_output=list(said), previous_round_info=kept)
        if not isinstance(found, tuple):  # a task of one round
            return None
        messages, is_over, _, kept = found
        return None if is_over else (lambda eyes, system: eyes.turns(messages, system), kept)

    return Asked(name=f"{task}/{split}/{number}", turns=turns, settings=settings, rounds=following)


def given_answer(arguments: Sequence[Any], documents: Mapping[str, Any]) -> Given:
    """Read an answer whose likelihood is asked; the space the harness puts before it is none of the template's.

    Raises RecipeError for answers without a question, which multiple choice by mutual information asks for.
    """
    if len(arguments) == 2:
        raise RecipeError("a task by mutual information (acc_mutual_info): not with --model tokenmill; take acc")
    context, answer, visuals_of, number, task, split = arguments
    asked = simple_request((context, {}, visuals_of, number, task, split), documents)
    is_choice = isinstance(answer, str)
    said = answer if is_choice else str(answer(documents[task][split][number]))
    return Given(question=(asked.name, context), asked=asked, answer=said.lstrip(), is_choice=is_choice)


def next_round(asked: Asked, said: Sequence[str]) -> Asked | None:
    """Give the next round of a request that was answered so far with `said`; None where its task ends it."""
    following = asked.rounds(said, asked.kept) if asked.rounds else None
    return None if following is None else replace(asked, turns=following[0], kept=following[1])
