"""Draw scenes: PIL at four times the size, then averaged down, so edges are smooth; about 0.5 ms a picture at 64 px.

Legend: T frames, H height, W width, C channels (RGB).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tokenmill.demo.world import RGB, Scene, Thing

SUPERSAMPLING = 4
_OUTLINES: dict[str, Sequence[tuple[float, float]]] = {  # in radii around the centre, y downwards
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "triangle": [(0, -0.95), (1, 0.85), (-1, 0.85)],
    "star": [
        (math.sin(k * math.pi / 5) * (1.0, 0.42)[k % 2], -math.cos(k * math.pi / 5) * (1.0, 0.42)[k % 2])
        for k in range(10)
    ],
    "cross": [
        *[(-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)],
        *[(0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)],
    ],
}


def render(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """Draw a scene (a moving one as it starts) as `size` x `size` pixels: HWC uint8."""
    side = size * SUPERSAMPLING
    canvas = backdrop(scene.corners, side)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.objects:
        draw_thing(draw, thing, side)
    return np.asarray(canvas.reduce(SUPERSAMPLING))


def render_motion(scene: Scene, num_frames: int, size: int = 64) -> NDArray[np.uint8]:
    """Draw a scene over time: THWC uint8; each object has gone its whole way `dx`, `dy` in the last frame."""
    steps = [frame / max(1, num_frames - 1) for frame in range(num_frames)]
    return np.stack([render(_moved(scene, step), size) for step in steps])


def _moved(scene: Scene, step: float) -> Scene:
    """Return the scene at a moment, 0 at the start and 1 at the end."""
    things = (replace(thing, x=thing.x + step * thing.dx, y=thing.y + step * thing.dy) for thing in scene.objects)
    return replace(scene, objects=tuple(things))


def backdrop(corners: tuple[RGB, RGB, RGB, RGB], side: int) -> Image.Image:
    """Return a background's gradient of `side` x `side` pixels: its four corner colours, interpolated by PIL."""
    grid = Image.fromarray(np.array(corners, dtype=np.uint8).reshape(2, 2, 3))
    return grid.resize((side, side), Image.Resampling.BICUBIC)


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
    """Draw one thing with hard edges on a canvas of `side` x `side` pixels; PIL cuts its corners down to whole ones."""
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        draw.ellipse(box, fill=thing.rgb)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=thing.rgb, width=max(1, round(radius * 0.42)))
    else:
        draw.polygon([(x + u * radius, y + v * radius) for u, v in _OUTLINES[thing.shape]], fill=thing.rgb)
