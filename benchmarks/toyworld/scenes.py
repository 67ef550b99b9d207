"""From a seed to a picture of 32 x 32 pixels: who plays, where they stand, what lies behind; the same on every machine.

One thing, small or large (35 %); two to four equal ones (25 %); a pair that differs in shape and colour (30 %); a
"mixed" pair that shares one of them, so that only both together tell which is meant (10 %). Counts, relations and
colours are drawn before what they are combined with, so that each is as frequent as the others although some
combinations are left out. Things stand on one of nine places, two of them 16 pixels or more apart in one direction. The
trade-off: a code of 8 x 8 pixels then has few contents, so a tokenizer shows shapes of 12 pixels after minutes (with
places anywhere, circles and squares were one blot after 400 steps) and a model of 4 million parameters learns to draw
them from 5 million ids; fewer pictures differ. Near-ties of relations, where people would argue, are not drawn.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.toyworld.splits import SEEN_SHAPES, is_unseen
from benchmarks.toyworld.world import BACKGROUNDS, COLOURS, NOISE, PLACES, RELATIONS, SHAPES, SIZE
from tokenmill.demo.drawing import SUPERSAMPLING, backdrop, draw_thing
from tokenmill.demo.staging import HELDOUT_SEEDS
from tokenmill.demo.world import RGB, Kind, Scene, Thing

__all__ = ["HELDOUT_SEEDS", "background", "canvas_of", "draw", "look", "scene", "with_noise"]

KINDS: tuple[tuple[Kind, float], ...] = (("single", 0.35), ("group", 0.25), ("pair", 0.3), ("mixed", 0.1))
SMALL, LARGE = 6 / SIZE, 7.75 / SIZE
_APART = 16 / SIZE
_PLAIN = 2.0  # of two things, how much farther they are apart in one direction than in the other
_OFFSETS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def scene(seed: int, *, unseen: bool = False) -> Scene:
    """Make the scene of `seed`: one without any unseen combination, or if `unseen` one that has at least one."""
    rng = random.Random(f"toy scene {seed}{' unseen' * unseen}")
    kind = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
    name, corners = background(rng)
    count, where = rng.randint(2, 4), rng.choice(RELATIONS)
    while True:
        cast = _cast(rng, kind, count, unseen=unseen)
        apart = [_at(where, thing) if index else thing for index, thing in enumerate(cast)]
        made = Scene(seed=seed, kind=kind, background=name, corners=corners, objects=tuple(apart))
        if is_unseen(made) == unseen:
            return replace(made, objects=_place(rng, cast, where))
        if unseen:
            count, where = rng.randint(2, 4), rng.choice(RELATIONS)


def draw(made: Scene) -> NDArray[np.uint8]:
    """Draw a scene, with its noise: HWC uint8, 32 x 32."""
    side = SIZE * SUPERSAMPLING
    canvas = canvas_of(made.corners, side)
    pen = ImageDraw.Draw(canvas)
    for thing in made.objects:
        draw_thing(pen, thing, side)
    return with_noise(np.asarray(canvas.reduce(SUPERSAMPLING)), made.seed)


def canvas_of(corners: tuple[RGB, RGB, RGB, RGB], side: int) -> Image.Image:
    """Return a background to draw on, larger than the picture; its gradient has the picture's steps: faster."""
    return backdrop(corners, SIZE).resize((side, side), Image.Resampling.NEAREST)


def with_noise(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Add the noise of `seed` to a picture, or the same one to each frame of a clip: a camera's grain that stays."""
    noise = np.random.default_rng(seed).standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(NOISE)
    noisy: NDArray[np.uint8] = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return noisy


def look(rng: random.Random, radius: float, size: str = "small", *, unseen: bool = False) -> Thing:
    """Draw a thing's colour (a little off the named one), then one of the shapes it is seen in, or of all if `unseen`.

    Its place is the middle.
    """
    colour = rng.choice(list(COLOURS))
    shape = rng.choice(SHAPES if unseen else SEEN_SHAPES[colour])
    rgb = _jitter(rng, COLOURS[colour], 1)
    return Thing(shape=shape, colour=colour, size=size, x=0.5, y=0.5, radius=radius, rgb=rgb)


def background(rng: random.Random) -> tuple[str, tuple[RGB, RGB, RGB, RGB]]:
    """Choose a background and the four corners of its gradient."""
    name = rng.choice(list(BACKGROUNDS))
    corners = [_jitter(rng, BACKGROUNDS[name], 1) for _ in range(4)]
    return name, (corners[0], corners[1], corners[2], corners[3])


def _cast(rng: random.Random, kind: Kind, count: int, *, unseen: bool) -> list[Thing]:
    """Choose who plays."""
    if kind == "single":
        return [look(rng, *rng.choice([(SMALL, "small"), (LARGE, "large")]), unseen=unseen)]
    if kind == "group":
        return [look(rng, SMALL, unseen=unseen)] * count
    shared = {"pair": 0, "mixed": 1}[kind]
    first = look(rng, SMALL, unseen=unseen)
    while True:
        second = look(rng, SMALL, unseen=unseen)
        if (first.shape == second.shape) + (first.colour == second.colour) == shared:
            return [first, second]


def _at(where: str, thing: Thing) -> Thing:
    """Put a thing where one in the middle is `where` of it: a place that stands for all such places."""
    x, y = _OFFSETS[where]
    return replace(thing, x=0.5 - 0.3 * x, y=0.5 - 0.3 * y)


def _place(rng: random.Random, cast: list[Thing], where: str) -> tuple[Thing, ...]:
    """Give each thing a place, none touching another; of two different ones, the first `where` of the second."""
    is_pair = len(cast) == 2 and cast[0] is not cast[1]
    lattice = [at / SIZE for at in PLACES]
    while True:
        places: list[tuple[float, float]] = []
        for _ in cast:
            x, y = rng.choice(lattice), rng.choice(lattice)
            if not all(max(abs(x - a), abs(y - b)) >= _APART for a, b in places):
                break
            places.append((x, y))
        if len(places) == len(cast) and (not is_pair or _stands(places[0], where, places[1])):
            return tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(cast, places, strict=True))


def _stands(first: tuple[float, float], where: str, second: tuple[float, float]) -> bool:
    x, y = _OFFSETS[where]
    dx, dy = first[0] - second[0], first[1] - second[1]
    return dx * x + dy * y >= _PLAIN * (abs(dx * y) + abs(dy * x))


def _jitter(rng: random.Random, rgb: RGB, by: int) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-by, by))) for value in rgb)
    return red, green, blue
