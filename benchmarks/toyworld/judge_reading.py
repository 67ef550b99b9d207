"""Read a picture back: which coloured shapes it shows, where and how large, and what in it is none.

Each region of one colour is compared with every shape's template at the measured centre and size. It is an object only
if a template covers the same pixels (`LEAST_LIKENESS`) and its colour is near a name's; anything else of some size is
reported as junk, so a smear beside a good object does not go unnoticed. About 3 ms a picture of 32 x 32.

Legend: H height, W width, C channels (RGB), in pixels; the upper left pixel's middle is 0.5, 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.toyworld.judge_pixels import (
    RGB,
    Floats,
    Mask,
    Pixels,
    Regions,
    components,
    grown,
    inner,
    regions_of,
)
from benchmarks.toyworld.judge_templates import SOFTNESS_PX, cover, placed
from benchmarks.toyworld.world import BACKGROUNDS, BAR, COLOURS, SHAPES

LEAST_LIKENESS = 0.72  # of coverage and template: intersection over union, soft
LEAST_AREA = 0.012  # of the picture: 12 pixels of 1,024; the smallest thing of the world covers 29
FARTHEST_COLOUR = 75.0  # RGB units from the name's colour
SEARCH_STEPS_PX = (2.0, 1.0, 0.5, 0.25)
WAYS = np.array(
    [(x, y, r) for x in (-1, 0, 1) for y in (-1, 0, 1) for r in (-1, 0, 1) if abs(x) + abs(y) + abs(r) in (1, 2)]
)
SMALLEST_RADIUS_PX = 2.0
SPLIT_COVERAGE = (0.7, 0.85)  # where things run into each other: look again for what is covered by so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An object found in a picture: centre and radius in pixels (as scenes have them), `likeness` to its template.

    `margin`: how much less like the next shape it is. `whole`: neither cut by the border nor touched by another.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    likeness: float
    margin: float
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a picture shows. `background` is None (and nothing was found) where no even background can be made out.

    `junk` counts regions of some size that are no object, of any colour.
    """

    background: str | None
    objects: tuple[Seen, ...] = ()
    junk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a reader knows of the world: names of colours and backgrounds, shapes, the colour of what hides things."""

    palette: Mapping[str, RGB]
    shapes: Sequence[str]
    backgrounds: Mapping[str, RGB]
    bar: RGB | None = None
    least_likeness: float = LEAST_LIKENESS


PICTURES = Look(palette=COLOURS, shapes=SHAPES, backgrounds=BACKGROUNDS)
CLIPS = Look(palette=COLOURS, shapes=SHAPES, backgrounds=BACKGROUNDS, bar=BAR)


def read(pixels_HWC: Pixels, look: Look = PICTURES) -> Reading:
    """Read a picture of any size: HWC uint8."""
    colours = dict(look.palette) | ({} if look.bar is None else {"bar": look.bar})
    regions = regions_of(pixels_HWC, colours)
    if regions is None:
        return Reading(background=None)
    objects, junk = [], 0
    taken = np.zeros(regions.labels.shape, bool)
    for number, name in enumerate(look.palette):
        for part in components(regions.labels == number):
            if not _large(part):
                continue
            found = _objects(pixels_HWC, regions, number, part, name, look)
            objects += found
            junk += not found
            taken |= part
    junk += _strange(regions, len(colours), taken)
    middle = regions.background.mean((0, 1))
    return Reading(background=_nearest(middle, look.backgrounds)[0], objects=tuple(objects), junk=junk)


def _large(part: Mask) -> bool:
    """Tell a region from specks and from the thin seam of mixed colours between two objects that touch."""
    return bool(part.sum() >= LEAST_AREA * part.size and inner(part).sum() >= 0.12 * part.sum())


def _strange(regions: Regions, unknown: int, taken: Mask) -> int:
    """Count regions of no known colour."""
    return sum(_large(part) for part in components((regions.labels == unknown) & ~taken))


def _objects(pixels: Pixels, regions: Regions, number: int, part: Mask, name: str, look: Look) -> list[Seen]:
    """Take a region for one object; where that fails, for several that run into each other; else for none."""
    single = _object(pixels, regions, number, part, name, look)
    if single is not None:
        return [single]
    for least in SPLIT_COVERAGE:
        parts = [piece for piece in components(part & (regions.coverage[number] > least)) if _large(piece)]
        if len(parts) > 1:
            several = [_object(pixels, regions, number, _share(part, parts, i), name, look) for i in range(len(parts))]
            found = [one for one in several if one is not None]
            if len(found) == len(parts):
                return found
    return []


def _share(part: Mask, pieces: Sequence[Mask], which: int) -> Mask:
    """Give a piece those pixels of the region that are nearer to it than to any other piece."""
    from scipy.ndimage import distance_transform_edt

    distances = np.stack([distance_transform_edt(~piece) for piece in pieces])
    return np.asarray(part & (distances.argmin(0) == which))


def _object(pixels: Pixels, regions: Regions, number: int, part: Mask, name: str, look: Look) -> Seen | None:
    """Compare one region with each shape's template."""
    cores = regions.coverage[number][part]
    core = part & (regions.coverage[number] >= np.quantile(cores, 0.6))
    colour = np.median(pixels[core], axis=0).astype(np.float32)
    nearest, distance = _nearest(colour, look.palette)
    if nearest != name or distance > FARTHEST_COLOUR:
        return None
    alike = _coverage(pixels, regions.background, colour)
    others = (regions.labels >= 0) & ~part
    around = grown(part, 2)
    known = part | ~grown(others) if others.any() else np.ones_like(part)
    touched = not known[around].all() or _at_border(part)
    soft = np.where(around & known, alike, 0)
    found = [_fit(shape, soft, known) for shape in look.shapes]
    fits = sorted([_searched(fit, soft, known) for fit in found] if touched else found, key=lambda fit: -fit.likeness)
    best = fits[0]
    if best.likeness < look.least_likeness:
        return None
    return Seen(
        shape=best.shape,
        colour=name,
        x=best.x,
        y=best.y,
        radius=best.radius,
        likeness=best.likeness,
        margin=best.likeness - fits[1].likeness if len(fits) > 1 else 1.0,
        whole=not touched,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    shape: str
    x: float
    y: float
    radius: float
    softness: int
    likeness: float


def _fit(shape: str, soft: Floats, known: Mask) -> _Fit:
    """Put a shape where the coverage's centroid and area say, and tell how like it is to the coverage."""
    area = float(soft.sum())
    rows, columns = soft.sum(1), soft.sum(0)
    cx = float((columns * (np.arange(len(columns)) + 0.5)).sum() / area)
    cy = float((rows * (np.arange(len(rows)) + 0.5)).sum() / area)
    x, y, radius = placed(shape, area, cx, cy)
    fits = [_tried(shape, x, y, radius, level, soft, known) for level in range(len(SOFTNESS_PX))]
    return max(fits, key=lambda fit: fit.likeness)


def _tried(shape: str, x: float, y: float, radius: float, softness: int, soft: Floats, known: Mask) -> _Fit:
    template = cover(shape, x, y, radius, (soft.shape[0], soft.shape[1]), softness)
    likeness = _likeness(template, soft, known)
    return _Fit(shape=shape, x=x, y=y, radius=radius, softness=softness, likeness=likeness)


def _searched(best: _Fit, soft: Floats, known: Mask) -> _Fit:
    """Look around for a better place and size: where part of a thing is hidden, its centroid is not its middle."""
    for step in SEARCH_STEPS_PX:
        while True:
            tried = [
                _tried(best.shape, best.x + dx, best.y + dy, best.radius + dr, best.softness, soft, known)
                for dx, dy, dr in WAYS * step
                if best.radius + dr >= SMALLEST_RADIUS_PX
            ]
            candidate = max(tried, key=lambda fit: fit.likeness)
            if candidate.likeness <= best.likeness + 1e-4:
                break
            best = candidate
    return best


def _likeness(template: Floats, soft: Floats, known: Mask) -> float:
    """Intersection over union of two soft coverages, where the picture is known to show this object or nothing."""
    template = template * known  # `soft` is nothing already where nothing is known
    both = float(np.minimum(template, soft).sum())
    return both / (float(template.sum()) + float(soft.sum()) - both)


def _coverage(pixels: Pixels, background: Floats, colour: Floats) -> Floats:
    """How much of each pixel is covered by an object of exactly this colour: HW, 0..1."""
    line = colour - background
    found: Floats = (((pixels - background) * line).sum(-1) / (line**2).sum(-1)).clip(0, 1)
    return found


def _at_border(part: Mask) -> bool:
    return bool(part[0].any() or part[-1].any() or part[:, 0].any() or part[:, -1].any())


def _nearest(colour: NDArray[np.float32], names: Mapping[str, RGB]) -> tuple[str, float]:
    """Return the name of the nearest colour and its distance in RGB units."""
    distances = {name: float(np.linalg.norm(colour - np.array(rgb, np.float32))) for name, rgb in names.items()}
    best = min(distances, key=distances.__getitem__)
    return best, distances[best]
