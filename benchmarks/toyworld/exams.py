"""Questions for evaluation: held-out scenes, each answer of a form equally often, so chance is one over the answers.

Pictures are asked yes_no, counting, colour and relation, clips yes_no, colour and motion. Unseen exams ask for
combinations that training never has; half of the yes-or-no ones are truly denied. The trade-off: scenes are drawn until
one fits the answer that is due, 2 to 20 scenes a question, 1 to 5 ms.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from benchmarks.toyworld import questions as ask
from benchmarks.toyworld.motion import motion
from benchmarks.toyworld.scenes import HELDOUT_SEEDS, scene
from benchmarks.toyworld.splits import UNSEEN, look_of, relation_of
from benchmarks.toyworld.world import COLOURS, NUMBERS, RELATIONS, Motion, Question, QuestionKind
from tokenmill.demo.world import Scene, relation

Shown = TypeVar("Shown", Scene, Motion)
_Due = tuple[str, str]  # a form and the answer that is due
_YES_NO = [(form, answer) for form in ask.FORMS for answer in ("yes", "no")]
_RELATION = [("is", "yes"), ("is", "no"), ("is", "yes"), ("is", "no")]
_DUE: dict[QuestionKind, list[_Due]] = {
    "yes_no": _YES_NO,
    "counting": [("number", NUMBERS[count]) for count in (1, 2, 3, 4)],
    "colour": [("name", colour) for colour in COLOURS],
    "relation": [*_RELATION, *(("where", where) for where in ("left", "right", "above", "below"))],
    "motion": [*(("way", way) for way in ("left", "right", "up", "down")), ("bounce", "yes"), ("bounce", "no")],
}
_UNSEEN_DUE: dict[QuestionKind, list[_Due]] = {
    **_DUE,
    "yes_no": [("random", "yes"), ("random", "no")],
    "counting": _DUE["counting"][1:],
    "colour": [("name", colour) for colour in ("red", "yellow", "blue")],
}


def exam(kind: QuestionKind, count: int, *, unseen: bool = False) -> tuple[tuple[Scene, Question], ...]:
    """Return `count` pictures with a question each, the same ones each time."""
    if kind == "motion":
        raise ValueError("motion is asked of clips; use clip_exam")
    due = (_UNSEEN_DUE if unseen else _DUE)[kind]
    return tuple(itertools.islice(_found(due, lambda seed: scene(seed, unseen=unseen), _OF_SCENE[kind], unseen), count))


def clip_exam(kind: QuestionKind, count: int, *, unseen: bool = False) -> tuple[tuple[Motion, Question], ...]:
    """Return `count` clips with a question each, the same ones each time."""
    if kind in ("counting", "relation"):
        raise ValueError(f"{kind} is asked of pictures; use exam")
    due = (_UNSEEN_DUE if unseen else _DUE)[kind]
    return tuple(itertools.islice(_found(due, lambda seed: motion(seed, unseen=unseen), _OF_CLIP[kind], unseen), count))


def _found(
    due: Sequence[_Due],
    make: Callable[[int], Shown],
    put: Callable[[random.Random, Shown, _Due, bool], Question | None],
    unseen: bool,
) -> Iterator[tuple[Shown, Question]]:
    """Go through the answers that are due, and for each through the scenes until one can be asked so."""
    seeds = itertools.count(HELDOUT_SEEDS)
    for one in itertools.cycle(due):
        for seed in seeds:
            shown = make(seed)
            question = put(random.Random(f"toy exam {seed}"), shown, one, unseen)
            if question is not None:
                yield shown, question
                break


def _yes_no(rng: random.Random, shown: Scene | Motion, due: _Due, unseen: bool) -> Question | None:
    form, answer = due
    if not unseen:
        return ask.yes_no(rng, shown, form, answer)
    present = {(thing.colour, thing.shape) for thing in shown.objects}
    new = [look for look in ask.LOOKS if look_of(*look) in UNSEEN and (look in present) == (answer == "yes")]
    return ask.existence(rng, rng.choice(new), form, answer) if new else None


def _counting(rng: random.Random, made: Scene, due: _Due, unseen: bool) -> Question | None:
    if made.kind not in ("single", "group"):
        return None
    return _fitting(ask.counting(rng, made), due, unseen)


def _colour(rng: random.Random, shown: Scene | Motion, due: _Due, unseen: bool) -> Question | None:
    if not ask.has_colour(shown):
        return None
    return _fitting(ask.colour(rng, shown), due, unseen)


def _relation(rng: random.Random, made: Scene, due: _Due, unseen: bool) -> Question | None:
    if made.kind not in ("pair", "mixed"):
        return None
    form, answer = due
    if form == "where":
        return _fitting(ask.relation_where(rng, made), due, unseen)
    if not unseen or answer == "yes":
        return _fitting(ask.relation_is(rng, made, answer), due, unseen)
    first, second = made.objects
    true = relation(first, second)
    new = [where for where in RELATIONS if relation_of(first.shape, where, second.shape) in UNSEEN and where != true]
    return ask.relation_asked(rng, made, rng.choice(new), answer) if new else None


def _motion(rng: random.Random, made: Motion, due: _Due, unseen: bool) -> Question | None:
    if due[0] == "bounce":
        return _fitting(ask.bounce(rng, made), due, unseen)
    return _fitting(ask.way(rng, made), due, unseen) if ask.has_way(made) else None


def _fitting(question: Question, due: _Due, unseen: bool) -> Question | None:
    return question if (question.answer == due[1] and question.unseen == unseen) else None


_OF_SCENE = {"yes_no": _yes_no, "counting": _counting, "colour": _colour, "relation": _relation}
_OF_CLIP = {"yes_no": _yes_no, "colour": _colour, "motion": _motion}
