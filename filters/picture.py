"""One picture as scorers see it: its views are decoded when a scorer asks, each at most once.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for less than the price of the whole (libjpeg scales inside the
DCT), and most figures need no more than 512 pixels. Other formats are decoded whole and averaged to the same scale.
Which scale a view has is one fixed rule of the picture's size and the view alone, never of what other scorers look at,
so a scorer's columns are the same alone and in company. One core, 0.9 megapixels: RGB 3.0 ms whole, 2.2 at 1/2, 1.7 at
1/8; luma alone 2.2 whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # height, width, 3 channels (RGB)
Luma = NDArray[np.uint8]  # height, width
Kind = Literal["rgb", "luma"]
Decode = Callable[[Kind, int], NDArray[np.uint8]]  # kind and scale (1, 2, 4, 8) → pixels, upright

_SCALES = (8, 4, 2)
_LEAST_SIDE_PX = 16  # no side of a scaled view is shorter
_HALVED_SIDE_PX = 128
_KEPT_BYTES = 4 * 2**20  # larger views are not held for the next scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a scorer looks at: colours or luma, and how many pixels it needs; without a bound, all of them.

    Attributes:
        longest_side_px: the longer side has at least as many pixels, if the picture has them.
        min_side_px: the same for the shorter side.
        max_scale: no view is scaled down further (8, 4, 2 or 1).
    """

    kind: Kind = "rgb"
    longest_side_px: int | None = None
    min_side_px: int | None = None
    max_scale: int = 8

    def scale(self, width_px: int, height_px: int) -> int:
        """Return the scale of a picture of this size: the largest of 8, 4, 2 that leaves enough, else 1."""
        longest, shortest = max(width_px, height_px), min(width_px, height_px)
        if self.longest_side_px is None and self.min_side_px is None:
            return 1
        for scale in _SCALES:
            enough = longest >= scale * (self.longest_side_px or 0) and shortest >= scale * (self.min_side_px or 0)
            if enough and scale <= self.max_scale and shortest >= scale * _LEAST_SIDE_PX:
                return scale
        return 1


BASE = View(longest_side_px=512)  # every picture is decoded at least so far: what fails here is a failed sample


class Picture:
    """An encoded picture, or a frame, with what is known of it.

    Attributes:
        width_px, height_px: upright, of all the pixels there are to see; of a clip's frame as it was sampled.
        source_width_px, source_height_px: of the file: what a frame measured before it was shrunk.
        data: the encoded bytes; empty for a frame of a video.
        sha256: of the sample, hex, as indexed; empty where there is none.
        caption: what the source says the picture shows.
    """

    __slots__ = (
        "__weakref__", "_decode", "_grey", "_held", "caption", "data", "height_px", "sha256", "source_height_px",
        "source_width_px", "width_px",
    )  # fmt: skip

    def __init__(
        self, decode: Decode, width_px: int, height_px: int, *, data: bytes = b"", sha256: str = "",
        caption: str | None = None, source_size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self._decode = decode
        self._held: dict[tuple[Kind, int], NDArray[np.uint8]] = {}
        self._grey: tuple[Luma, Luma] | None = None
        self.width_px, self.height_px = width_px, height_px
        self.source_width_px, self.source_height_px = source_size or (width_px, height_px)
        self.data, self.sha256, self.caption = data, sha256, caption

    @classmethod
    def of(
        cls, image: Image, *, caption: str | None = None, data: bytes = b"", sha256: str = "",
        source_size: tuple[int, int] | None = None,
    ) -> Picture:  # fmt: skip
        """Make a picture of HWC pixels; `source_size` (width, height) is that of the file they were shrunk from."""
        height, width = image.shape[:2]
        return cls(
            _Frame(image), width, height, data=data, sha256=sha256, caption=caption, source_size=source_size
        )  # fmt: skip

    def rgb(self, *, longest_side_px: int | None = None, min_side_px: int | None = None) -> Image:
        """Return HWC pixels with at least the sides asked for; raises SampleError where they cannot be decoded."""
        return self.view(View(longest_side_px=longest_side_px, min_side_px=min_side_px))

    def luma(self, *, longest_side_px: int | None = None, min_side_px: int | None = None) -> Luma:
        """Return the luma (HW, ITU-R 601; of a JPEG its own Y), see `rgb`."""
        return self.view(View(kind="luma", longest_side_px=longest_side_px, min_side_px=min_side_px))

    def grey(self, *, halved: bool = False) -> Luma:
        """Return the luma of `BASE`'s colours, for which nothing more is decoded.

        `halved`: at half its size, where the shorter side keeps 128 pixels.
        """
        if self._grey is None:
            whole = luma_of(self.view(BASE))
            self._grey = whole, reduced(whole, 2) if min(whole.shape) >= 2 * _HALVED_SIDE_PX else whole
        return self._grey[halved]

    def view(self, view: View) -> NDArray[np.uint8]:
        """Return a view's pixels, decoding them unless they are held."""
        place = (view.kind, view.scale(self.width_px, self.height_px))
        if place not in self._held:
            self._held[place] = self._decode(*place)
        return self._held[place]

    def release(self) -> None:
        """Let go of large views, and of the decoder's whole pixels, once the scorers that run now have seen them."""
        self._grey = None
        self._held = {place: pixels for place, pixels in self._held.items() if pixels.nbytes <= _KEPT_BYTES}
        if (release := getattr(self._decode, "release", None)) is not None:  # a decoder may hold more than its views
            release()


@dataclass(frozen=True, slots=True)
class _Frame:
    """Pixels that are there already."""

    image: Image

    def __call__(self, kind: Kind, scale: int) -> NDArray[np.uint8]:
        image = reduced(self.image, scale)
        return image if kind == "rgb" else luma_of(image)


def reduced(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Halve pixels (HWC or HW) as often as `factor`, a power of two, says; odd last rows and columns are cut off.

    By halves, because blocks of 2 x 2 are averaged in 0.1 ms where blocks of 4 x 4 take 0.5 (a quarter megapixel).
    """
    import cv2

    while factor > 1:
        height, width = (side // 2 for side in image.shape[:2])
        image = cv2.resize(image[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA)
        factor //= 2
    return image


def luma_of(image: Image) -> Luma:
    """Return the luma (HW) of HWC pixels: 0.299 R + 0.587 G + 0.114 B."""
    import cv2

    luma: Luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return luma
