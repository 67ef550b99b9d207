"""Prompts of GenEval's six kinds, with what is wanted, in the words that captions have.

    for prompt in prompts("position", 40, unseen=True):
        ...                            # prompt.text, prompt.wanted, prompt.relation

A list is a function of its kind and length alone, and the first n of a longer one are the list of n. The trade-off:
single objects and pairs of them name shapes alone, as GenEval does, and of 3 shapes and 3 pairs none can be left out of
training, so these two kinds have no unseen prompts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from benchmarks.toyworld.captions import BARE_FRAMES, FRAMES, framed, wish
from benchmarks.toyworld.splits import is_unseen_wish
from benchmarks.toyworld.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Prompt, PromptKind, Wanted

_GROUND_FRAMES = tuple(frame for frame in FRAMES if "{ground}" in frame)
_Case = tuple[tuple[Wanted, ...], str | None]


def prompts(kind: PromptKind, count: int, *, unseen: bool = False) -> tuple[Prompt, ...]:
    """Return `count` prompts of a kind; every case comes once before any comes again, in another wording.

    Raises:
        ValueError: no prompt of that kind can have an unseen combination.
    """
    cases = [case for case in _cases(kind) if is_unseen_wish(*case) == unseen]
    if not cases:
        raise ValueError(f"no {kind} prompt has an unseen combination; ask for seen ones")
    return tuple(itertools.islice(_worded(kind, cases, unseen), count))


def _worded(kind: PromptKind, cases: list[_Case], unseen: bool) -> Iterator[Prompt]:
    rng = random.Random(f"toy prompts {kind} {unseen}")
    while True:
        rng.shuffle(cases)
        for wanted, related in cases:
            ground = rng.choice([None, *BACKGROUNDS])
            frame = rng.choice(_GROUND_FRAMES if ground else BARE_FRAMES)
            plural = wanted[0].count > 1
            text = framed(wish(wanted, related), frame, ground, plural=plural)
            yield Prompt(kind=kind, text=text, wanted=wanted, relation=related, background=ground, unseen=unseen)


def _cases(kind: PromptKind) -> list[_Case]:
    shapes = [Wanted(shape=shape) for shape in SHAPES]
    looks = [Wanted(shape=shape, colour=colour) for shape in SHAPES for colour in COLOURS]
    match kind:
        case "single_object":
            return [((one,), None) for one in shapes]
        case "two_objects":
            return [(pair, None) for pair in itertools.permutations(shapes, 2)]
        case "counting":
            return [((one,), None) for one in _counted()]
        case "colours":
            return [((one,), None) for one in looks]
        case "position":
            return [(pair, where) for pair in itertools.permutations(shapes, 2) for where in RELATIONS]
        case "colour_attribution":
            pairs = itertools.permutations(looks, 2)
            return [((a, b), None) for a, b in pairs if a.shape != b.shape and a.colour != b.colour]


def _counted() -> Iterator[Wanted]:
    """Yield two to four of every shape, with and without a colour."""
    for shape, colour, count in itertools.product(SHAPES, (None, *COLOURS), (2, 3, 4)):
        yield Wanted(shape=shape, colour=colour, count=count)
