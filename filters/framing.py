"""Bring a picture to the square of pixels that a network sees, as CLIP's own preprocessing does.

Networks see some 224 pixels, so a JPEG is decoded at the scale that leaves twice as many (`OVERSAMPLING`). That moves
scores less than saving the JPEG at quality 80 instead of 90 does. Cosine of EfficientNet-lite0 features with those of
the full decode, least and median over ten photographs by their shorter side, whole figures in docs/scorers_clip.md:

    shorter side      460 px         1,000 px       1,900 px
    quality 80        .977  .994     .997  .998     .998  .999
    oversampling 1    .987  .995     .991  .995     .991  .994
    oversampling 2    1     1        .999  .9995    .998  .9993     the one in use
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from tokenmill.filters.picture import Image, Picture, View

OVERSAMPLING = 2
Mode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": PilImage.Resampling.BICUBIC, "bilinear": PilImage.Resampling.BILINEAR}
_NOTHING = 1e-6  # of a pixel: what multiplying sizes may leave
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How a picture becomes `crop_px` squared: resized (antialiased), then cut or padded around its centre.

    Attributes:
        resize_px: the shorter side after resizing, the longer one, or both, by `mode`.
        fill: grey level of what is padded (mode `longest`).
    """

    resize_px: int = 224
    crop_px: int = 224
    mode: Mode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill: int = 0

    @property
    def view(self) -> View:
        """What has to be decoded of a picture."""
        return View(min_side_px=OVERSAMPLING * self.resize_px)

    def frame(self, picture: Picture) -> Image:
        """Return HWC pixels, `crop_px` squared; a picture of any shape costs no more than its view and this square."""
        pixels = picture.view(self.view)
        target = _resized(picture.width_px, picture.height_px, self)
        inner = _inner(target, self.crop_px)
        left, top, right, bottom = inner
        scale_x, scale_y = _scales(picture, pixels, self.view, target)
        box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        return _padded(_resample(pixels, (right - left, bottom - top), box, self.interpolation), self)


def _resized(width: int, height: int, framing: Framing) -> tuple[int, int]:
    """Return (width, height) after resizing, rounded as torchvision (`shortest`) and timm (`longest`) do."""
    side = framing.resize_px
    if framing.mode == "squash":
        return side, side
    if framing.mode == "longest":
        longest = max(width, height)
        return max(1, round(width * side / longest)), max(1, round(height * side / longest))
    shortest = min(width, height)
    return int(side * width / shortest), int(side * height / shortest)


def _inner(target: tuple[int, int], crop_px: int) -> tuple[int, int, int, int]:
    """Return the part of the resized picture that is left after cutting around the centre."""
    width, height = (min(side, crop_px) for side in target)
    left, top = (round((side - kept) / 2) for side, kept in zip(target, (width, height), strict=True))
    return left, top, left + width, top + height


def _scales(picture: Picture, pixels: Image, view: View, target: tuple[int, int]) -> tuple[float, float]:
    """Return how many pixels of the view one of the target is, across and down.

    A JPEG's view at 1/4 has its last row and column rounded up, a frame's rounded down: taken as a whole it would shift
    the picture by half a pixel.
    """
    height, width = pixels.shape[:2]
    scale = view.scale(picture.width_px, picture.height_px)
    whole = width == picture.width_px and height == picture.height_px
    covered = (width, height) if whole else (picture.width_px / scale, picture.height_px / scale)
    return covered[0] / target[0], covered[1] / target[1]


def _resample(pixels: Image, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Image:
    height, width = pixels.shape[:2]
    lacking = max(0, math.ceil(box[3] - _NOTHING) - height), max(0, math.ceil(box[2] - _NOTHING) - width)
    if any(lacking):  # the part of a row that was rounded down
        pixels = np.pad(pixels, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
    inside = (box[0], box[1], min(box[2], width), min(box[3], height))
    image = PilImage.fromarray(pixels).resize(size, _FILTERS[interpolation], box=inside)
    return np.asarray(image)


def _padded(pixels: Image, framing: Framing) -> Image:
    height, width = pixels.shape[:2]
    side = framing.crop_px
    if (height, width) == (side, side):
        return np.ascontiguousarray(pixels)
    padded: NDArray[np.uint8] = np.full((side, side, 3), framing.fill, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded
