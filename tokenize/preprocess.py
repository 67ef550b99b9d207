"""From any picture to what a tokenizer takes: sides of multiples of its factor within an area, values in -1..1.

EMU3.md §2: area within [512², 1024²] for understanding, near 512² or 720² for generation, aspect at most 5, bicubic,
mean = std = 0.5. (The port's image processor defaults to CLIP's mean and deviation: not to be used.) Resizing costs
detail that no code can bring back, so pictures already within the area keep their size but for the rounding.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.errors import SampleError

MEAN = STD = 0.5


def target_size(
    height: int, width: int, *, min_area: int, max_area: int, max_aspect: float, multiple: int
) -> tuple[int, int]:
    """Choose the (height, width) a picture is resized to: same shape, area within bounds, sides of multiples.

    The released code's rule: round both sides, and only if the area is out of bounds scale (down rounding down, up
    rounding up), so the bounds hold exactly whenever one rounding allows it. `multiple` is the vision tokenizer's
    `spatial_factor`: 8 pixels for Emu3's, 16 for IBQ.

    Raises:
        SampleError: `aspect_too_large` beyond `max_aspect`, `too_small` for a side under `multiple` pixels.
    """
    if min(height, width) < multiple:
        raise SampleError("too_small", f"{height}x{width} pixels: each side needs at least {multiple}")
    aspect = max(height, width) / min(height, width)
    if aspect > max_aspect:
        raise SampleError("aspect_too_large", f"{height}x{width} pixels: aspect {aspect:.2f} is over {max_aspect:g}")
    rows, columns = (max(multiple, round(side / multiple) * multiple) for side in (height, width))
    if rows * columns > max_area:
        scale = math.sqrt(max_area / (height * width))
        rows, columns = (max(multiple, math.floor(side * scale / multiple) * multiple) for side in (height, width))
    elif rows * columns < min_area:
        scale = math.sqrt(min_area / (height * width))
        rows, columns = (math.ceil(side * scale / multiple) * multiple for side in (height, width))
    return rows, columns


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an HWC picture to (height, width) with PIL's bicubic filter, which averages when it shrinks."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map 0..255 to -1..1: (value / 255 - mean) / std with mean = std = 0.5."""
    result: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return result
