"""Which combinations never occur in training, so that what the model does with them is not remembered.

Every colour, shape, count and relation occurs in training; some of their combinations don't: 3 of 15 looks (colour and
shape), 2 of 12 pairs of shapes in a relation, and of groups one count for one shape and two counts for two colours. The
trade-off: more unseen ones would test more and teach less; these leave four fifths of all looks and five sixths of all
relations to learn from.
"""

from __future__ import annotations

from benchmarks.toyworld.world import COLOURS, OPPOSITE, SHAPES, Motion, Wanted
from tokenmill.demo.world import Scene, relation

Combination = tuple[str | int, ...]  # its kind, and what is combined

UNSEEN_LOOKS = (("red", "triangle"), ("blue", "circle"), ("yellow", "square"))
UNSEEN_RELATIONS = (("square", "left of", "circle"), ("triangle", "above", "square"))
UNSEEN_COUNTS = ((3, "square"), (2, "purple"), (4, "green"))  # of a shape, or of a colour
SEEN_SHAPES = {colour: tuple(shape for shape in SHAPES if (colour, shape) not in UNSEEN_LOOKS) for colour in COLOURS}
UNSEEN: frozenset[Combination] = frozenset(
    [("look", *look) for look in UNSEEN_LOOKS]
    + [("relation", *related) for related in UNSEEN_RELATIONS]
    + [("count", *counted) for counted in UNSEEN_COUNTS]
)


def combinations(shown: Scene | Motion) -> frozenset[Combination]:
    """Return all combinations in a picture or clip, unseen or not."""
    found: set[Combination] = {look_of(thing.colour, thing.shape) for thing in shown.objects}
    if isinstance(shown, Scene):
        for group in shown.groups:
            found |= counts_of(group.count, group.colour, group.shape)
        if len(shown.objects) == 2:
            first, second = shown.objects
            where = relation(first, second)
            found |= {relation_of(first.shape, where, second.shape)} if where else set()
    return frozenset(found)


def is_unseen(shown: Scene | Motion) -> bool:
    """Say whether a picture or clip has a combination that never occurs in training."""
    return not UNSEEN.isdisjoint(combinations(shown))


def is_unseen_wish(wanted: tuple[Wanted, ...], related: str | None) -> bool:
    """Say whether the things that a prompt names, in that relation, are a combination that never occurs in training."""
    named: set[Combination] = set()
    for one in wanted:
        named |= counts_of(one.count, one.colour, one.shape)
        if one.colour is not None:
            named.add(look_of(one.colour, one.shape))
    if related is not None:
        named.add(relation_of(wanted[0].shape, related, wanted[1].shape))
    return not UNSEEN.isdisjoint(named)


def look_of(colour: str, shape: str) -> Combination:
    """Return a look as a combination."""
    return ("look", colour, shape)


def relation_of(first: str, where: str, second: str) -> Combination:
    """Return two shapes in a relation as a combination: the same from whichever side it is told."""
    if where in ("right of", "below"):
        first, where, second = second, OPPOSITE[where], first
    return ("relation", first, where, second)


def counts_of(count: int, colour: str | None, shape: str) -> set[Combination]:
    """Return a number of equal things as combinations: with their shape, and with their colour where it is known."""
    return {("count", count, shape)} | ({("count", count, colour)} if colour is not None else set())
