"""Questions about pictures and clips with answers of one word, drawn so that no constant answer beats chance.

Whether the answer is yes or no is drawn before what is asked about, and absent things are drawn as often as they would
be present, so the words of a question do not give its answer away either: yes is right in half of every wording
that is asked. Absent things are chosen as in POPE: at "random", "popular" (the looks most frequent in training)
or "adversarial" (they share colour or shape with what is there). The trade-off: training never names an unseen
combination, not even to deny it, so three looks are never asked about; otherwise "is there a red triangle" would be
answered no by heart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from benchmarks.toyworld.captions import name
from benchmarks.toyworld.splits import UNSEEN, counts_of, is_unseen, look_of, relation_of
from benchmarks.toyworld.world import COLOURS, NUMBERS, OPPOSITE, RELATIONS, SHAPES, Motion, Question
from tokenmill.demo.world import Scene, relation

Look = tuple[str, str]  # colour, shape
FORMS = ("random", "popular", "adversarial")
LOOKS: tuple[Look, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_LOOKS = tuple(look for look in LOOKS if look_of(*look) not in UNSEEN)
POPULAR = tuple(look for look in SEEN_LOOKS if sum(other[0] == look[0] for other in SEEN_LOOKS) == 2)
_SINGLES_COUNTED = 0.24  # of single things this share is counted: "one" is then as frequent as "two", "three", "four"


def questions(made: Scene, count: int = 2) -> tuple[Question, ...]:
    """Return at most `count` (of five) questions about a picture of training, the same ones each time.

    Half of them are yes or no; no question answers another, except that the truth does.
    """
    rng = random.Random(f"toy questions {made.seed}")
    return _mixed(rng, _open(rng, made), made, count)


def clip_questions(made: Motion, count: int = 2) -> tuple[Question, ...]:
    """Return at most `count` (of five) questions about a clip of training."""
    rng = random.Random(f"toy clip questions {made.seed}")
    ask = way if has_way(made) and rng.random() < 0.5 else bounce  # of a bounce as often where there is none
    return _mixed(rng, [ask(rng, made), colour(rng, made)], made, count)


def _mixed(rng: random.Random, asked: list[Question], made: Scene | Motion, count: int) -> tuple[Question, ...]:
    """Choose among questions about one scene: open ones and yes or no by turns, in random order."""
    rest = [yes_no(rng, made), *rng.sample((shape_there(rng, made), colour_there(rng, made)), 2)]
    by_turns = [one for pair in itertools.zip_longest(asked, rest) for one in pair if one is not None][:count]
    return tuple(rng.sample(by_turns, len(by_turns)))


def yes_no(rng: random.Random, made: Scene | Motion, form: str | None = None, answer: str | None = None) -> Question:
    """Ask whether there is a thing of some look that occurs in training."""
    form, answer = form or rng.choice(FORMS), answer or rng.choice(("yes", "no"))
    present = sorted({(thing.colour, thing.shape) for thing in made.objects})
    asked = rng.choice(present) if answer == "yes" else absent(rng, present, form)
    return existence(rng, asked, form, answer)


def existence(rng: random.Random, asked: Look, form: str, answer: str) -> Question:
    """Word the question whether there is a thing of a look."""
    thing = name(asked[1], asked[0])
    text = rng.choice((f"is there {thing}?", f"do you see {thing}?"))
    return Question(kind="yes_no", form=form, text=text, answer=answer, unseen=look_of(*asked) in UNSEEN)


def shape_there(rng: random.Random, made: Scene | Motion) -> Question:
    """Ask whether there is a thing of some shape, in whatever colour."""
    asked, answer = _present_or_not(rng, SHAPES, {thing.shape for thing in made.objects})
    return Question(kind="yes_no", form="shape", text=f"is there a {asked}?", answer=answer)


def colour_there(rng: random.Random, made: Scene | Motion) -> Question:
    """Ask whether there is a thing of some colour, in whatever shape."""
    asked, answer = _present_or_not(rng, tuple(COLOURS), {thing.colour for thing in made.objects})
    return Question(kind="yes_no", form="colour", text=f"is anything {asked}?", answer=answer)


def absent(rng: random.Random, present: Sequence[Look], form: str) -> Look:
    """Choose a look that occurs in training but not here, in POPE's way."""
    allowed = POPULAR if form == "popular" else SEEN_LOOKS
    others = [look for look in allowed if look not in present]
    if form == "adversarial":
        near = [look for look in others if any(look[0] == one[0] or look[1] == one[1] for one in present)]
        others = [look for look in near if _is_swap(look, present)] or near
    return rng.choice(others)


def counting(rng: random.Random, made: Scene) -> Question:
    """Ask how many there are of equal things."""
    (group,) = made.groups
    noun = rng.choice((f"{group.shape}s", f"{group.colour} {group.shape}s"))
    is_new = not UNSEEN.isdisjoint(counts_of(group.count, group.colour, group.shape))
    text = f"how many {noun} are there?"
    return Question(kind="counting", form="number", text=text, answer=NUMBERS[group.count], unseen=is_new)


def colour(rng: random.Random, made: Scene | Motion) -> Question:
    """Ask for the colour of a shape that has only one colour here."""
    shapes = sorted({thing.shape for thing in made.objects})
    asked = rng.choice([shape for shape in shapes if len(_colours(made, shape)) == 1])
    (answer,) = _colours(made, asked)
    several = sum(thing.shape == asked for thing in made.objects) > 1
    text = f"what colour are the {asked}s?" if several else f"what colour is the {asked}?"
    return Question(kind="colour", form="name", text=text, answer=answer, unseen=look_of(answer, asked) in UNSEEN)


def relation_is(rng: random.Random, made: Scene, answer: str | None = None) -> Question:
    """Ask whether one of two things stands left of, right of, above or below the other."""
    first, second = made.objects
    true = relation(first, second)
    answer = answer or rng.choice(("yes", "no"))
    known = [one for one in RELATIONS if relation_of(first.shape, one, second.shape) not in UNSEEN]
    asked = true if answer == "yes" else rng.choice([one for one in known if one != true])
    return relation_asked(rng, made, asked or "", answer)


def relation_asked(rng: random.Random, made: Scene, asked: str, answer: str) -> Question:
    """Word the question whether the first thing stands in a relation to the second, from either side."""
    first, second = made.objects
    is_new = relation_of(first.shape, asked, second.shape) in UNSEEN
    one, other = _told_apart(made)
    if rng.random() < 0.5:
        one, other, asked = other, one, OPPOSITE[asked]
    text = f"is the {one} {asked} the {other}?"
    return Question(kind="relation", form="is", text=text, answer=answer, unseen=is_new)


def relation_where(rng: random.Random, made: Scene) -> Question:
    """Ask where one of two things is, seen from the other."""
    first, second = made.objects
    true = relation(first, second) or ""
    is_new = relation_of(first.shape, true, second.shape) in UNSEEN
    one, other = _told_apart(made)
    if rng.random() < 0.5:
        one, other, true = other, one, OPPOSITE[true]
    text, answer = f"where is the {one}, seen from the {other}?", true.removesuffix(" of")
    return Question(kind="relation", form="where", text=text, answer=answer, unseen=is_new)


def way(rng: random.Random, made: Motion) -> Question:
    """Ask which way the thing moves."""
    text = rng.choice(
        (f"which way does the {made.objects[0].shape} move?", f"where does the {made.objects[0].shape} go?")
    )
    return Question(kind="motion", form="way", text=text, answer=made.way or "", unseen=is_unseen(made))


def bounce(rng: random.Random, made: Motion) -> Question:
    """Ask whether the thing bounces."""
    answer = "yes" if made.kind == "bouncing" else "no"
    text = f"does the {made.objects[0].shape} bounce?"
    return Question(kind="motion", form="bounce", text=text, answer=answer, unseen=is_unseen(made))


def has_colour(made: Scene | Motion) -> bool:
    """Say whether some shape has only one colour here."""
    return any(len(_colours(made, thing.shape)) == 1 for thing in made.objects)


def has_way(made: Motion) -> bool:
    """Say whether there is one answer to which way a thing moves."""
    return made.way is not None and made.kind != "bouncing"


def _open(rng: random.Random, made: Scene) -> list[Question]:
    """Ask what is not yes or no (or how two things stand), in random order but counting first: it is balanced so."""
    asked = []
    if has_colour(made):
        asked.append(colour(rng, made))
    if made.kind in ("pair", "mixed"):
        asked.append(relation_is(rng, made) if rng.random() < 0.5 else relation_where(rng, made))
    rng.shuffle(asked)
    if made.kind == "group" or (made.kind == "single" and rng.random() < _SINGLES_COUNTED):
        asked.insert(0, counting(rng, made))
    return asked


def _present_or_not(rng: random.Random, names: Sequence[str], present: set[str]) -> tuple[str, str]:
    answer = rng.choice(("yes", "no"))
    return rng.choice([one for one in names if (one in present) == (answer == "yes")]), answer


def _told_apart(made: Scene) -> tuple[str, str]:
    """Name two things by their shapes, or where these are equal by their colours too."""
    first, second = made.objects
    if first.shape != second.shape:
        return first.shape, second.shape
    return f"{first.colour} {first.shape}", f"{second.colour} {second.shape}"


def _is_swap(look: Look, present: Sequence[Look]) -> bool:
    """Say whether a look has the colour of one thing here and the shape of another."""
    return any(look[0] == one[0] for one in present) and any(look[1] == one[1] for one in present)


def _colours(made: Scene | Motion, shape: str) -> set[str]:
    return {thing.colour for thing in made.objects if thing.shape == shape}
