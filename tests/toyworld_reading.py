"""Reads the toy world's sentences back and says whether they are true, by coordinates alone: no code of its writers."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.toyworld.world import Motion

COUNTS = {"a": 1, "two": 2, "three": 3, "four": 4}
ANSWERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_COLOUR, _SHAPE = "red|yellow|green|blue|purple", "circle|square|triangle"
_THING = (
    rf"(?P<count>a|two|three|four) (?:(?P<size>small|large) )?(?:(?P<colour>{_COLOUR}) )?(?P<shape>{_SHAPE})(?P<s>s?)"
    r"(?: in the (?P<place>(?:top|bottom) (?:left|right)|top|bottom|left|right|center))?"
)
_GROUNDS = (
    r"(?P<rest>.*) on a (?P<ground>white|gray|black) background",
    r"(?P<ground>white|gray|black) background(?: with|,) (?P<rest>.*)",
    r"(?P<rest>.*), the background is (?P<ground>white|gray|black)",
    r"on a (?P<ground>white|gray|black) background, (?P<rest>.*)",
)
_MOVES = re.compile(
    r"(?:bounces|moves(?P<way> left| right| up| down)?)"
    r"(?P<bounces> and bounces(?: off the edges)?)?(?P<behind>(?: and passes)? behind a (?:brown )?bar)?"
)


@dataclass(frozen=True, kw_only=True)
class Named:
    """Things as a sentence names them."""

    count: int
    shape: str
    colour: str | None
    size: str | None
    place: str | None

    def fits(self, thing: Any) -> bool:
        if self.size is not None and self.size != thing.size:
            return False
        return self.shape == thing.shape and self.colour in (None, thing.colour)


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What a sentence claims."""

    named: tuple[Named, ...]
    relation: str | None
    ground: str | None
    rest: str = ""


def sentence(text: str) -> Sentence:
    """Take a caption of a picture apart, to its last word."""
    ground, rest = _without_ground(text)
    rest = re.sub(r"^(a picture of|there is|there are) ", "", rest)
    parts = re.split(r" (and|left of|right of|above|below) ", rest)
    related = parts[1] if len(parts) > 1 else None
    return Sentence(
        named=tuple(_named(part) for part in parts[::2]), relation=None if related == "and" else related, ground=ground
    )


def is_true(text: str, made: Any) -> bool:
    """Say whether a caption of a picture is true and names everything there is."""
    said = sentence(text)
    found = [[thing for thing in made.objects if named.fits(thing)] for named in said.named]
    if said.ground not in (None, made.background) or sum(named.count for named in said.named) != len(made.objects):
        return False
    if any(len(things) != named.count for things, named in zip(found, said.named, strict=True)):
        return False
    for (thing, *_), named in zip(found, said.named, strict=True):
        if named.place and named.place != ninth(thing.x, thing.y):
            return False
    return said.relation is None or stands(found[0][0], said.relation, found[1][0])


def is_true_of_clip(text: str, made: Motion, tracks: Sequence[tuple[float, float]]) -> bool:
    """Say whether a caption is true of a clip whose first thing goes along `tracks`, x and y frame by frame."""
    ground, rest = _without_ground(text)
    rest = rest.removeprefix("a video in which ")
    mover, *stays = rest.split(", ")
    thing = re.match(_THING, mover)
    assert thing is not None, text
    moves = _MOVES.fullmatch(mover[thing.end() + 1 :])
    assert moves is not None, text
    told = [_named(thing.group()), *(_named(one.removesuffix(" stays")) for one in stays)]
    (x0, y0), (x1, y1) = tracks[0], tracks[1]
    ways = {" right": x1 > x0 and y1 == y0, " left": x1 < x0 and y1 == y0, " down": y1 > y0, " up": y1 < y0}
    turned = len({(a < b, c < d) for (a, c), (b, d) in itertools.pairwise(tracks)}) > 1
    claims = [
        ground in (None, made.background),
        all(named.fits(one) for named, one in zip(told, made.objects, strict=False)),
        moves["way"] is None or ways[moves["way"]],
        ("bounces" in mover) == turned,
        moves["behind"] is None or made.bar is not None,
    ]
    return all(claims)


def ninth(x: float, y: float) -> str:
    """Name a place in thirds of the picture."""
    row = "top" if y < 1 / 3 else "bottom" if y >= 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x >= 2 / 3 else ""
    return f"{row} {column}".strip() or "center"


def stands(one: Any, relation: str, other: Any) -> bool:
    """Say whether one thing stands in a relation to another, by the larger of the two offsets."""
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > abs(dy):
        return relation == ("left of" if dx < 0 else "right of")
    return relation == ("above" if dy < 0 else "below")


def answer_to(text: str, made: Any) -> str:
    """Answer a question about a picture or clip (not about motion)."""
    if found := re.fullmatch(rf"(?:is there|do you see) a (?:({_COLOUR}) )?({_SHAPE})\?", text):
        return _yes(any(found[1] in (None, one.colour) and found[2] == one.shape for one in made.objects))
    if found := re.fullmatch(rf"is anything ({_COLOUR})\?", text):
        return _yes(any(found[1] == one.colour for one in made.objects))
    if found := re.fullmatch(rf"how many (?:({_COLOUR}) )?({_SHAPE})s are there\?", text):
        return ANSWERS[sum(found[1] in (None, one.colour) and found[2] == one.shape for one in made.objects)]
    if found := re.fullmatch(rf"what colour (?:is|are) the ({_SHAPE})s?\?", text):
        (colour,) = {one.colour for one in made.objects if one.shape == found[1]}
        return str(colour)
    name = rf"(?:(?:{_COLOUR}) )?(?:{_SHAPE})"
    if found := re.fullmatch(rf"is the ({name}) (left of|right of|above|below) the ({name})\?", text):
        return _yes(stands(_the(made, found[1]), found[2], _the(made, found[3])))
    found = re.fullmatch(rf"where is the ({name}), seen from the ({name})\?", text)
    assert found is not None, text
    one, other = _the(made, found[1]), _the(made, found[2])
    (where,) = [word for word in ("left of", "right of", "above", "below") if stands(one, word, other)]
    return where.removesuffix(" of")


def shares(pairs: Sequence[tuple[Any, str]]) -> dict[Any, Counter[str]]:
    """Count answers by whatever stands beside them."""
    counted: dict[Any, Counter[str]] = {}
    for key, answer in pairs:
        counted.setdefault(key, Counter())[answer] += 1
    return counted


def _the(made: Any, name: str) -> Any:
    *colour, shape = name.split()
    (thing,) = [one for one in made.objects if one.shape == shape and (not colour or one.colour == colour[0])]
    return thing


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _without_ground(text: str) -> tuple[str | None, str]:
    for pattern in _GROUNDS:
        if found := re.fullmatch(pattern, text):
            return found["ground"], found["rest"]
    return None, text


def _named(text: str) -> Named:
    found = re.fullmatch(_THING, text)
    assert found is not None, text
    count = COUNTS[found["count"]]
    assert (count > 1) == bool(found["s"]), text
    return Named(count=count, shape=found["shape"], colour=found["colour"], size=found["size"], place=found["place"])
