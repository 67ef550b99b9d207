"""From pixels to coloured regions: the background, each pixel's colour and how much of it is covered, components.

A pixel at an edge is a mixture of the background and a colour of the palette: it lies on the line between them, and
where on that line is how much of it is covered. So edges softened by a tokenizer cost nothing, and two objects that
touch are two regions if their colours differ. One trade-off: what covers most of a picture is taken for its background,
as a person would.

Legend: H height, W width, K colours of the palette; channels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

RGB = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

COVERED = 0.5  # a pixel belongs to an object when it is covered by this much
OFF_LINE = 62.0  # RGB units from every line between background and palette: a colour that is none
NEAR_BACKGROUND = 42.0  # RGB units: half of the way to the palest colour
LEAST_BACKGROUND = 0.36  # share of the picture; less is no scene (four things of 12 pixels leave 0.56, soft edges 0.4)
ROUGHEST = 13.0  # RGB units a channel, standard deviation of the background about its gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """A picture taken apart: `coverage` (K, H, W) of each colour, `labels` (H, W) its number, -1 none, K unknown."""

    background: Floats
    coverage: Floats
    labels: NDArray[np.int8]


def background_of(pixels_HWC: Floats) -> Floats | None:
    """Fit the gradient (a bilinear surface a channel) that most pixels lie on: HWC; None if there is none.

    Starts at the commonest colour, which four large things leave to the background while they would shift the median,
    and drops what is far from the fit, three times.
    """
    height, width = pixels_HWC.shape[:2]
    basis = _basis(height, width)
    flat = pixels_HWC.reshape(-1, 3)
    surface = np.broadcast_to(_commonest(flat), flat.shape)
    for limit in (2.0 * NEAR_BACKGROUND, NEAR_BACKGROUND, NEAR_BACKGROUND):
        near = ((flat - surface) ** 2).sum(1) < limit**2
        if near.mean() < LEAST_BACKGROUND:
            return None
        chosen = basis[near]
        weights = np.linalg.solve(chosen.T @ chosen + 1e-3 * np.eye(4, dtype=np.float32), chosen.T @ flat[near])
        surface = basis @ weights
    rest = flat[near] - surface[near]
    if rest.std() > ROUGHEST:
        return None
    return np.asarray(surface, np.float32).reshape(height, width, 3)


def _commonest(flat: Floats) -> Floats:
    """Return the mean of what lies near that one of some pixels all over the picture with most others near it."""
    some, others = flat[:: max(1, len(flat) // 31)], flat[::3]
    near = ((others[None] - some[:, None]) ** 2).sum(-1) < NEAR_BACKGROUND**2
    mean: Floats = others[near[near.sum(1).argmax()]].mean(0)
    return mean


@lru_cache(maxsize=8)
def _basis(height: int, width: int) -> Floats:
    """Return 1, x, y, xy of each pixel, x and y from -1 to 1: (H·W, 4)."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * y], axis=-1).reshape(-1, 4).astype(np.float32)


def regions_of(pixels_HWC: Pixels, palette: Mapping[str, RGB]) -> Regions | None:
    """Tell background, colours and coverage of a picture; None where no background can be made out."""
    pixels = pixels_HWC.astype(np.float32)
    background = background_of(pixels)
    if background is None:
        return None
    colours = np.array(list(palette.values()), np.float32)
    away = pixels - background
    line = colours[:, None, None] - background
    length = (line**2).sum(-1)
    coverage = (line * away).sum(-1) / length
    off = ((away - coverage.clip(0, 1)[..., None] * line) ** 2).sum(-1)
    nearest = off.argmin(0)
    own = np.take_along_axis(coverage, nearest[None], 0)[0]
    labels = np.where(own > COVERED, nearest, -1)
    strange = (off.min(0) > OFF_LINE**2) & ((away**2).sum(-1) > NEAR_BACKGROUND**2)
    labels = np.where(strange, len(colours), labels).astype(np.int8)
    return Regions(background=background, coverage=coverage, labels=labels)


def components(mask: Mask) -> list[Mask]:
    """Split a mask into connected parts (four neighbours)."""
    if not mask.any():
        return []
    numbered, count = label(mask)
    return [numbered == number for number in range(1, count + 1)]


def grown(mask: Mask, times: int = 1) -> Mask:
    """Add the eight neighbours of a mask's pixels, `times` times."""
    for _ in range(times):
        wide = mask.copy()
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        mask = wide.copy()
        mask[1:] |= wide[:-1]
        mask[:-1] |= wide[1:]
    return mask


def inner(mask: Mask) -> Mask:
    """Keep the pixels whose four neighbours belong to the mask; beyond the picture's border all do."""
    padded = np.pad(mask, 1, constant_values=True)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
