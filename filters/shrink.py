"""Bound what a scorer has to look at, never up: to an exact longest side, or by halves, which is 20 times faster.

So figures mean the same for a thumbnail and a photograph of 50 megapixels.
"""

from __future__ import annotations

from tokenmill.filters.picture import Image, reduced


def shrink(image: Image, longest_side_px: int) -> Image:
    """Scale HWC or HW pixels to a longest side of at most `longest_side_px`; smaller ones come back untouched."""
    import cv2

    height, width = image.shape[:2]
    scale = longest_side_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunk


def reduce_to(image: Image, longest_side_px: int) -> Image:
    """Halve pixels while the longest side stays at least `longest_side_px`: 20 times faster than `shrink`."""
    factor = min(max(image.shape[:2]) // longest_side_px, min(image.shape[:2]))
    return reduced(image, 1 << max(0, factor.bit_length() - 1))
