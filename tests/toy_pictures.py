"""Pictures of the toy world drawn exactly as a test says, on a soft gradient with noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from benchmarks.toyworld.world import BACKGROUNDS, COLOURS, NOISE, SIZE
from numpy.typing import NDArray

from tokenmill.demo.drawing import render
from tokenmill.demo.world import RGB, Scene, Thing

Placed = tuple[str, str, float, float, float]  # colour, shape, x, y, radius in pixels


def picture(
    things: Sequence[Placed],
    background: str = "gray",
    *,
    seed: int = 0,
    noise: float = NOISE,
    size: int = SIZE,
    palette: dict[str, RGB] | None = None,
) -> NDArray[np.uint8]:
    """Draw things on a background whose corners differ a little."""
    random = np.random.default_rng(seed)
    corners = [tuple(int(c) for c in np.add(BACKGROUNDS[background], random.integers(-8, 9, 3))) for _ in range(4)]
    colours = {**COLOURS, **(palette or {})}
    objects = tuple(
        Thing(shape=s, colour=c, size="", x=x / size, y=y / size, radius=r / size, rgb=colours[c])
        for c, s, x, y, r in things
    )
    one, two, three, four = (tuple(np.clip(corner, 0, 255)) for corner in corners)
    scene = Scene(seed=seed, kind="mixed", background=background, corners=(one, two, three, four), objects=objects)
    noisy = render(scene, size) + random.normal(0, noise, (size, size, 3))
    return noisy.clip(0, 255).round().astype(np.uint8)
