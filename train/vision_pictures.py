"""Encoded pictures to pixels, for training a tokenizer: upright RGB, or a reason.

A short kin of `pipelines/decode_image.py`, which this room may not import: what has been selected was decoded there
before, so no format is special here and everything goes through Pillow, twice the time for JPEGs. The cap on pixels is
checked on the header.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Callable, Hashable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import sha256_hex

Pixels = NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_BAD_BYTES = (OSError, SyntaxError, ValueError, OverflowError, RuntimeError, EOFError, struct.error)
_LARGEST_PX = 2048  # of a picture's longer side in memory
_RATIOS = (1, 1.5, 2, 3, 4, 6, 8)
_FARTHEST_PX = 512

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # a broken EXIF block is not worth a line
Image.MAX_IMAGE_PIXELS = None  # the cap is max_pixels below


def short_sides(side: int, available: int) -> list[int]:
    """Return the shorter sides a picture is shrunk to before a crop of `side` is taken; none if it is too small.

    A five-megapixel picture and its miniature are then both in distribution: crops at full size alone show walls and
    skies. Beyond 512 pixels, or twice the crop, they would again.
    """
    largest = min(available, max(_FARTHEST_PX, 2 * side))
    return [int(side * ratio) for ratio in _RATIOS if side * ratio <= largest]


def decoded_short_side(size: tuple[int, int]) -> int:
    """Return the shorter side of a picture of a size once `decode_picture` has bounded its longer one."""
    return int(min(size) * min(1.0, _LARGEST_PX / max(size)))


def open_picture(data: bytes, *, sha256: str, max_pixels: int) -> Image.Image:
    """Read a picture's header; nothing is decoded yet.

    Raises:
        SampleError: `changed_since_ingest`, `not_an_image`, `too_many_pixels`.
    """
    if sha256_hex(data) != sha256:
        raise SampleError("changed_since_ingest", "the bytes differ from the list's digest; run ingest again")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except _BAD_BYTES as error:
        raise SampleError("not_an_image", type(error).__name__) from error
    if image.width * image.height > max_pixels:
        raise SampleError("too_many_pixels", f"{image.width} x {image.height} is more than {max_pixels} pixels")
    return image


def decode_picture(image: Image.Image) -> Pixels:
    """Decode to HWC RGB, upright, transparency on white, the longer side at most 2048; raises SampleError `corrupt`."""
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            over = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over)
        rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
        rgb.thumbnail((_LARGEST_PX, _LARGEST_PX))
        return np.asarray(rgb)
    except _BAD_BYTES as error:
        raise SampleError("corrupt", f"{type(error).__name__} while decoding") from error


def shrunk(picture: Pixels, short_side: int) -> Pixels:
    """Resize a picture to a shorter side."""
    height, width = picture.shape[:2]
    by = short_side / min(height, width)
    size = (max(short_side, round(width * by)), max(short_side, round(height * by)))
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


class PixelCache:
    """Keeps arrays until a budget is full, and no more then: draws are even, so old ones are as good as new ones."""

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes
        self._kept: dict[Hashable, Pixels] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Pixels]) -> Pixels:
        """Return what is kept under a key, or make it."""
        found = self._kept.get(key)
        if found is not None:
            return found
        made = make()
        with self._lock:
            if made.nbytes <= self._left and key not in self._kept:
                self._kept[key] = made
                self._left -= made.nbytes
        return made
