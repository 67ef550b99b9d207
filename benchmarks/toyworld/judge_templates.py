"""What a shape covers: templates drawn by the scene renderer itself, at quarters of a pixel, with several softnesses.

A judge that compared with shapes of its own would measure the difference of two renderers. Centre and size come from
moments (area and centroid of a coverage), corrected by what the renderer's templates have; so a fit costs one template
a shape instead of a search: 0.1 ms instead of 5. Templates are cached, about 1 KB each.

Legend: H height, W width, h w a template's window, all in pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tokenmill.demo.drawing import render
from tokenmill.demo.world import Scene, Thing

Coverage = NDArray[np.float32]

STEPS = 4  # of a pixel: centres and radii are rounded to quarters
FINER = 4  # templates are drawn so much larger and averaged: PIL rounds corners to whole dots
SOFTNESS_PX = (0.0, 0.7, 1.1)  # sigma of the blur: as drawn, and as tokenizers leave it
LARGEST_RADIUS_PX = 48.0
_SMALLEST_RADIUS_PX = 1.0


@lru_cache(maxsize=1 << 16)
def _window(shape: str, radius_steps: int, x_step: int, y_step: int, softness: int) -> Coverage:
    """Draw a shape into a window around its centre: hw float32, 0..1."""
    radius = radius_steps / STEPS
    side = 2 * _half(radius)
    thing = Thing(
        shape=shape,
        colour="",
        size="",
        x=0.5 + x_step / STEPS / side,
        y=0.5 + y_step / STEPS / side,
        radius=radius / side,
        rgb=(255, 255, 255),
    )
    black = (0, 0, 0)
    scene = Scene(seed=0, kind="single", background="", corners=(black, black, black, black), objects=(thing,))
    large = render(scene, side * FINER)[..., 0].astype(np.float32) / 255
    cover = large.reshape(side, FINER, side, FINER).mean((1, 3))
    sigma = SOFTNESS_PX[softness]
    return cover if sigma == 0 else np.asarray(gaussian_filter(cover, sigma, mode="constant"), np.float32)


def _half(radius: float) -> int:
    """Half a window's side: the shape, a fraction of a pixel, and the reach of the blur."""
    return math.ceil(radius * 1.05) + 4


def cover(shape: str, x: float, y: float, radius: float, size: tuple[int, int], softness: int = 0) -> Coverage:
    """Return how much of each pixel a shape covers: HW float32. Centre and radius in pixels, `softness` as numbered."""
    height, width = size
    canvas = np.zeros(size, np.float32)
    radius_steps = max(1, round(radius * STEPS))
    column, row = round(x * STEPS), round(y * STEPS)
    window = _window(shape, radius_steps, column % STEPS, row % STEPS, softness)
    half = len(window) // 2
    left, top = column // STEPS - half, row // STEPS - half
    x0, x1 = max(0, left), min(width, left + len(window))
    y0, y1 = max(0, top), min(height, top + len(window))
    if x0 < x1 and y0 < y1:
        canvas[y0:y1, x0:x1] = window[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas


@lru_cache(maxsize=64)
def _moments(shape: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return radii and, for each, area and the centroid's way from the nominal centre, as the renderer draws them."""
    steps = np.unique(np.geomspace(_SMALLEST_RADIUS_PX, LARGEST_RADIUS_PX, 40) * STEPS // 1).astype(int)
    areas, across, down = [], [], []
    for radius_steps in steps:
        window = _window(shape, int(radius_steps), 0, 0, 0).astype(np.float64)
        places = np.arange(len(window)) + 0.5 - len(window) / 2
        area = window.sum()
        areas.append(area)
        across.append((window.sum(0) * places).sum() / area)
        down.append((window.sum(1) * places).sum() / area)
    return steps / STEPS, np.array(areas), np.array(across), np.array(down)


def placed(shape: str, area: float, x: float, y: float) -> tuple[float, float, float]:
    """Return centre and radius (x, y, radius) of a shape that covers `area` with its centroid at `x`, `y`; pixels."""
    radii, areas, across, down = _moments(shape)
    root = np.interp(math.sqrt(max(area, 0.0)), np.sqrt(areas), radii)
    return (
        x - float(np.interp(root, radii, across)),
        y - float(np.interp(root, radii, down)),
        float(root),
    )
