"""Clips with exact physics: where a thing is at any time, also long after the clip that was written.

Things go straight on (half a pixel a frame, some past another that stays), bounce off the picture's edges as a ball
without loss (a pixel a frame, at least once in 32 frames), or pass behind a bar and come out again: near frame 16, half
of what is written, the thing is hidden. Times are frames, and real numbers: `position(made, 2.5)` is between two. The
trade-off: one thing moves, uniformly, in one of three lanes or along a diagonal, and from few places: each latent frame
of 4 then begins in one of few places, all of which a small model can learn. A frozen frame is wrong by 8 to 16 pixels
after 16 frames.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.toyworld.scenes import background, canvas_of, look, with_noise
from benchmarks.toyworld.splits import is_unseen
from benchmarks.toyworld.world import BAR, FRAMES, PLACES, SIZE, WAYS, Bar, Motion, MotionKind, Mover, Tracks
from tokenmill.demo.drawing import draw_thing
from tokenmill.demo.world import Thing

_SUPERSAMPLING = 8  # finer than of pictures: a thing moves by eighths of a pixel
_RADIUS, _OF_BOUNCING, _OF_OCCLUDED = 6 / SIZE, 8 / SIZE, 5 / SIZE
_TURNS = (12, 16, 20)  # between the places where things of radius 8 meet the edges
_SLOW, _FAST, _OF_PASSING = 0.5, 1.0, 11 / 16  # pixels a frame


def motion(seed: int, *, unseen: bool = False, kind: MotionKind | None = None) -> Motion:
    """Make the clip of `seed`, of a kind or any, with looks that occur in training; if `unseen`, one that does not."""
    rng = random.Random(f"toy motion {seed}{' unseen' * unseen}")
    drawn = rng.choice(get_args(MotionKind))
    make = {"straight": _straight, "bouncing": _bouncing, "occluded": _occluded}[kind or drawn]
    name, corners = background(rng)
    while True:
        objects, way, bar = make(rng, unseen)
        made = Motion(
            seed=seed, kind=kind or drawn, background=name, corners=corners, objects=objects, way=way, bar=bar
        )
        if is_unseen(made) == unseen:
            return made


def position(made: Motion, time: float) -> NDArray[np.float64]:
    """Say where the centres are at a time in frames: (N, 2), x and y in pixels."""
    centres: NDArray[np.float64] = tracks(made, 1, first=time).centres[0]
    return centres


def tracks(made: Motion, num_frames: int, first: float = 0) -> Tracks:
    """Say where all things are in `num_frames` frames from `first` on, and how much of them can be seen."""
    times = first + np.arange(num_frames, dtype=np.float64)[:, None, None]
    starts = np.array([(one.x, one.y) for one in made.objects])
    velocities = np.array([(one.vx, one.vy) for one in made.objects])
    radii = np.array([one.radius for one in made.objects])
    centres = starts + velocities * times
    if made.kind == "bouncing":
        centres = _folded(centres, radii[:, None], SIZE - radii[:, None])
    return Tracks(first=first, centres=centres, visible=_visible(centres, radii, made.bar))


def draw_motion(made: Motion, num_frames: int = FRAMES, first: int = 0) -> NDArray[np.uint8]:
    """Draw a clip, any part of it: THWC uint8, 32 x 32; frame t of the result is that of time `first` + t."""
    side = SIZE * _SUPERSAMPLING
    ground = canvas_of(made.corners, side)
    frames = [_frame(made, ground, centres) for centres in tracks(made, num_frames, first).centres]
    return with_noise(np.stack(frames), made.seed)


def bounces(made: Motion, num_frames: int = FRAMES) -> tuple[float, ...]:
    """Return the times at which a thing meets an edge within `num_frames` frames, in order."""
    times: list[float] = []
    for one in made.objects if made.kind == "bouncing" else ():
        for start, speed in ((one.x, one.vx), (one.y, one.vy)):
            if speed:
                way, length = (SIZE - one.radius - start if speed > 0 else start - one.radius), SIZE - 2 * one.radius
                meets = (way + length * np.arange(1 + num_frames)) / abs(speed)
                times += [float(time) for time in meets if time <= num_frames - 1]
    return tuple(sorted(times))


def _frame(made: Motion, ground: Image.Image, centres: NDArray[np.float64]) -> NDArray[np.uint8]:
    canvas = ground.copy()
    pen, side = ImageDraw.Draw(canvas), SIZE * _SUPERSAMPLING
    for one, (x, y) in zip(made.objects, centres, strict=True):
        thing = Thing(
            shape=one.shape,
            colour=one.colour,
            size="small",
            x=x / SIZE,
            y=y / SIZE,
            radius=one.radius / SIZE,
            rgb=one.rgb,
        )
        draw_thing(pen, thing, side)
    if made.bar is not None:
        left, top, right, bottom = (
            round(edge * _SUPERSAMPLING) for edge in (made.bar.left, made.bar.top, made.bar.right, made.bar.bottom)
        )
        pen.rectangle((left, top, right - 1, bottom - 1), fill=made.bar.rgb)
    return np.asarray(canvas.reduce(_SUPERSAMPLING))


def _folded(way: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where something is that would have come to `way` but is thrown back at `low` and `high` without loss."""
    length = high - low
    phase = np.mod(way - low, 2 * length)
    folded: NDArray[np.float64] = low + np.minimum(phase, 2 * length - phase)
    return folded


def _visible(centres: NDArray[np.float64], radii: NDArray[np.float64], bar: Bar | None) -> NDArray[np.float64]:
    """Return the share of each thing's box that lies in the picture and not behind the bar: (T, N)."""
    low, high = centres - radii[:, None], centres + radii[:, None]
    seen = _overlap(low, high, (0.0, 0.0), (float(SIZE), float(SIZE)))
    if bar is not None:
        seen = seen - _overlap(low, high, (bar.left, bar.top), (bar.right, bar.bottom))
    return np.clip(seen / (2 * radii) ** 2, 0.0, 1.0)


def _overlap(
    low: NDArray[np.float64], high: NDArray[np.float64], start: tuple[float, float], end: tuple[float, float]
) -> NDArray[np.float64]:
    sides = np.minimum(high, np.minimum(end, SIZE)) - np.maximum(low, np.maximum(start, 0.0))
    area: NDArray[np.float64] = np.prod(np.maximum(sides, 0.0), axis=-1)
    return area


_Made = tuple[tuple[Mover, ...], str | None, Bar | None]


def _straight(rng: random.Random, unseen: bool) -> _Made:
    """One thing on its way from side to side, in a third of the clips past another that stays."""
    way, mover = rng.choice(list(WAYS)), _mover(rng, _RADIUS, unseen)
    if rng.random() < 2 / 3:
        return (_going(mover, way, PLACES[0], rng.choice(PLACES), _SLOW),), way, None
    other = _mover(rng, _RADIUS, unseen)
    while other.shape == mover.shape or other.colour == mover.colour:
        other = _mover(rng, _RADIUS, unseen)
    lanes = [PLACES[0], PLACES[-1]]
    rng.shuffle(lanes)
    still = _going(other, way, rng.choice(PLACES), lanes[1], 0.0)
    return (_going(mover, way, PLACES[0], lanes[0], _SLOW), still), way, None


def _bouncing(rng: random.Random, unseen: bool) -> _Made:
    """One thing between the edges: half of them straight to and fro, the others aslant."""
    mover = _mover(rng, _OF_BOUNCING, unseen)
    if rng.random() < 0.5:
        way = rng.choice(list(WAYS))
        return (_going(mover, way, rng.choice(_TURNS), 16, _FAST),), way, None
    x, y = rng.choice(_TURNS), rng.choice(_TURNS)
    return (replace(mover, x=x, y=y, vx=_FAST * rng.choice((-1, 1)), vy=_FAST * rng.choice((-1, 1))),), None, None


def _occluded(rng: random.Random, unseen: bool) -> _Made:
    """One thing from one side to the other, in the middle behind a bar somewhat wider than itself."""
    way = rng.choice(list(WAYS))
    mover = _mover(rng, _OF_OCCLUDED, unseen)
    moving = _going(mover, way, mover.radius + 0.25, rng.choice(PLACES), _OF_PASSING)
    low, high = (SIZE / 2 + side * (mover.radius + 0.5) for side in (-1, 1))
    box = (low, 0.0, high, float(SIZE)) if WAYS[way][0] else (0.0, low, float(SIZE), high)
    shade = rng.randint(-2, 2)
    bar = Bar(
        left=box[0], top=box[1], right=box[2], bottom=box[3], rgb=(BAR[0] + shade, BAR[1] + shade, BAR[2] + shade)
    )
    return (moving,), way, bar


def _going(mover: Mover, way: str, along: float, across: float, speed: float) -> Mover:
    """Send a mover on its way: `along` from the edge it comes from, `across` from the left or upper edge."""
    dx, dy = WAYS[way]
    along = along if dx + dy > 0 else SIZE - along
    x, y = (along, across) if dx else (across, along)
    return replace(mover, x=x, y=y, vx=dx * speed, vy=dy * speed)


def _mover(rng: random.Random, radius: float, unseen: bool) -> Mover:
    thing = look(rng, radius, unseen=unseen)
    return Mover(shape=thing.shape, colour=thing.colour, rgb=thing.rgb, radius=thing.radius * SIZE, x=0.0, y=0.0)
