"""From a seed to a scene: who plays, where they stand, what lies behind; a pure function, the same on every machine.

Only `random.Random` is used, whose sequence for a seed is fixed by Python. Places are drawn until nothing touches; that
takes 8 tries on average and some hundreds at worst (five objects in one picture), 0.2 ms a scene.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from tokenmill.demo.world import BACKGROUNDS, COLOURS, RGB, SHAPES, Kind, Scene, Thing, relation

HELDOUT_SEEDS = 1_000_000_000
"""Seeds from here on are for evaluation: nothing is ever trained on their scenes."""
RADII: Mapping[str, tuple[float, float]] = {"small": (0.085, 0.115), "large": (0.165, 0.2)}
MOVES: Mapping[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
KINDS: tuple[tuple[Kind, float], ...] = (("single", 0.35), ("group", 0.25), ("pair", 0.3), ("mixed", 0.1))


def scene(seed: int) -> Scene:
    """Make the still scene of `seed`: one object, a group of equals, two different objects, or two groups."""
    rng = random.Random(f"scene {seed}")
    kind = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
    objects = _place(rng, _cast(rng, kind))
    name, corners = _background(rng)
    return Scene(seed=seed, kind=kind, background=name, corners=corners, objects=objects)


def motion(seed: int) -> Scene:
    """Make the moving scene of `seed`: one object crosses the picture, half the time past another that stays."""
    rng = random.Random(f"motion {seed}")
    move = rng.choice(list(MOVES))
    mover, other = _different(rng, ("large", "small"))
    way = rng.uniform(0.4, 0.5)
    dx, dy = MOVES[move][0] * way, MOVES[move][1] * way
    across = rng.uniform(0.27, 0.33)
    x, y = (0.5 - dx / 2, across) if dx else (across, 0.5 - dy / 2)
    things = [replace(mover, x=x, y=y, dx=dx, dy=dy)]
    if rng.random() < 0.5:
        along = rng.uniform(0.25, 0.75)
        x, y = (along, 0.8) if dx else (0.8, along)
        things.append(replace(other, x=x, y=y))
    name, corners = _background(rng)
    return Scene(seed=seed, kind="moving", background=name, corners=corners, objects=tuple(things), motion=move)


def _cast(rng: random.Random, kind: Kind) -> list[Thing]:
    """Choose who plays: things with shape, colour and size but no place yet."""
    if kind == "single":
        return [_thing(rng, rng.choice(list(RADII)))]
    if kind == "group":
        count = rng.randint(2, 5)
        first = _thing(rng, rng.choice(list(RADII)) if count == 2 else "small")
        return [first] * count
    first, second = _different(rng, (rng.choice(list(RADII)), rng.choice(list(RADII))))
    if kind == "pair":
        return [first, second]
    first, second = (replace(thing, size="small", radius=_radius(rng, "small")) for thing in (first, second))
    return [first] * rng.randint(2, 3) + [second] * rng.randint(1, 2)


def _different(rng: random.Random, sizes: tuple[str, str]) -> tuple[Thing, Thing]:
    """Choose two things that differ in shape and in colour, so that a caption can tell them apart by either."""
    first, second = _thing(rng, sizes[0]), _thing(rng, sizes[1])
    while first.shape == second.shape or first.colour == second.colour:
        second = _thing(rng, sizes[1])
    return first, second


def _thing(rng: random.Random, size: str) -> Thing:
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        x=0.5,
        y=0.5,
        radius=_radius(rng, size),
        rgb=_jitter(rng, COLOURS[colour], 9),
    )


def _radius(rng: random.Random, size: str) -> float:
    return round(rng.uniform(*RADII[size]), 4)


def _place(rng: random.Random, cast: list[Thing]) -> tuple[Thing, ...]:
    """Give each thing a place, none touching another; two things stand clearly beside or above each other."""
    while True:
        placed: list[Thing] = []
        for thing in cast:
            margin = thing.radius + 0.03
            x, y = rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin)
            placed.append(replace(thing, x=round(x, 4), y=round(y, 4)))
        if _apart(placed) and (len(placed) != 2 or relation(placed[0], placed[1]) is not None):
            return tuple(placed)


def _apart(things: list[Thing]) -> bool:
    """Say whether all things keep a gap (diagonals of a square reach 1.13 radii, see `drawing`)."""
    return all(
        max(abs(a.x - b.x), abs(a.y - b.y)) > (a.radius + b.radius) + 0.03
        for index, a in enumerate(things)
        for b in things[:index]
    )


def _background(rng: random.Random) -> tuple[str, tuple[RGB, RGB, RGB, RGB]]:
    """Choose a background and its gradient: four corners, each a little off the named colour in brightness and hue."""
    name = rng.choice(list(BACKGROUNDS))
    corners = [_jitter(rng, _shift(BACKGROUNDS[name], rng.randint(-16, 16)), 4) for _ in range(4)]
    return name, (corners[0], corners[1], corners[2], corners[3])


def _jitter(rng: random.Random, rgb: RGB, by: int) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-by, by))) for value in rgb)
    return red, green, blue


def _shift(rgb: RGB, by: int) -> RGB:
    red, green, blue = (min(255, max(0, value + by)) for value in rgb)
    return red, green, blue
