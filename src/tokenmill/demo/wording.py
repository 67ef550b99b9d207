"""Say what a scene shows: several wordings, each true of the picture, in a grammar of some forty ASCII words.

Every wording names shape and colour, most of them also count, size, place or background: enough for a small model to
learn what to draw, varied enough that it cannot learn one phrase by heart.
"""

from __future__ import annotations

from tokenmill.demo.world import Group, Scene, Thing, relation

NUMBERS = ("no", "one", "two", "three", "four", "five")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_MOVES = {"right": "to the right", "left": "to the left", "up": "up", "down": "down"}


def captions(scene: Scene) -> tuple[str, ...]:
    """Return at least four captions true of the scene, always the same ones in the same order."""
    if scene.motion != "still":
        return _moving(scene)
    match scene.kind:
        case "single":
            return _single(scene)
        case "pair":
            return _pair(scene)
        case _:
            return _counted(scene)


def _single(scene: Scene) -> tuple[str, ...]:
    (thing,), ground = scene.objects, scene.background
    full, where = article(f"{thing.size} {thing.colour} {thing.shape}"), place(thing)
    return (
        f"{full} in the {where} on a {ground} background",
        f"{ground} background with {full} in the {where}",
        f"there is {full} in the {where}, the background is {ground}",
        f"one {thing.size} {thing.colour} {thing.shape} on {ground}, {where}",
        f"a picture of {article(f'{thing.colour} {thing.shape}')} on a {ground} background",
    )


def _pair(scene: Scene) -> tuple[str, ...]:
    (first, second), ground = scene.objects, scene.background
    where = relation(first, second) or "next to"
    back = OPPOSITE.get(where, where)
    a, b = (article(f"{thing.colour} {thing.shape}") for thing in (first, second))
    a_full, b_full = (article(f"{thing.size} {thing.colour} {thing.shape}") for thing in (first, second))
    return (
        f"{a_full} {where} {b_full} on a {ground} background",
        f"{b_full} {back} {a_full} on a {ground} background",
        f"{ground} background with {a_full} {where} {b_full}",
        f"there is {a} {where} {b}, the background is {ground}",
        f"a picture of {b} {back} {a} on a {ground} background",
    )


def _counted(scene: Scene) -> tuple[str, ...]:
    groups, ground = scene.groups, scene.background
    full = " and ".join(_count(group, sized=True) for group in groups)
    short = " and ".join(_count(group, sized=False) for group in groups)
    verb = "is" if groups[0].count == 1 else "are"
    return (
        f"{full} on a {ground} background",
        f"{ground} background with {full}",
        f"there {verb} {full}, the background is {ground}",
        f"a picture of {short} on a {ground} background",
    )


def _moving(scene: Scene) -> tuple[str, ...]:
    first, *rest = scene.objects
    ground, move = scene.background, _MOVES[scene.motion]
    name, full = article(f"{first.colour} {first.shape}"), article(f"{first.size} {first.colour} {first.shape}")
    still = "".join(f", {article(f'{thing.colour} {thing.shape}')} stays still" for thing in rest)
    return (
        f"{name} moves {move} on a {ground} background{still}",
        f"{full} moves {move}{still}, the background is {ground}",
        f"a video of {name} moving {move} on a {ground} background{still}",
        f"{ground} background, {full} moves {move}{still}",
    )


def place(thing: Thing) -> str:
    """Name the ninth of the picture in which a thing's centre lies, such as "top left" or "center"."""
    column, row = (("left", "", "right")[min(2, int(thing.x * 3))], ("top", "", "bottom")[min(2, int(thing.y * 3))])
    return f"{row} {column}".strip() or "center"


def article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _count(group: Group, *, sized: bool) -> str:
    noun = group.shape if group.count == 1 else f"{group.shape}{'es' if group.shape == 'cross' else 's'}"
    size = f"{group.size} " if sized else ""
    return f"{NUMBERS[group.count]} {size}{group.colour} {noun}"
