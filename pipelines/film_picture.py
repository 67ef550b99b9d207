"""One decoded frame to an upright RGB picture: display shape, one field of an interlaced frame, shrunk on the way.

swscale shrinks by area while it converts: 0.4 ms a frame from 720p to 96 px, where converting first and shrinking with
OpenCV takes 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tokenmill.errors import SampleError

Frame = NDArray[np.uint8]  # H W C, RGB
_HDR_TRANSFERS = (16, 18)  # PQ (SMPTE ST 2084) and HLG (ARIB STD-B67), numbers of ITU-T H.273


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """How a film's frames are shown: size in pixels before turning, and quarter turns counter-clockwise."""

    width_px: int
    height_px: int
    turns: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as seen."""
        return (self.width_px, self.height_px) if self.turns % 2 else (self.height_px, self.width_px)


def display_of(frame: Any, pixel_aspect: float) -> Display:
    """Say how a film is shown whose first frame this is."""
    turns = round(frame.rotation / 90) % 4
    return Display(width_px=max(1, round(frame.width * pixel_aspect)), height_px=frame.height, turns=turns)


def scaled_size(height: int, width: int, short_side_px: int | None) -> tuple[int, int]:
    """Scale a size so that its shorter side is `short_side_px`; never up."""
    scale = 1.0 if short_side_px is None else min(1.0, short_side_px / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def picture(frame: Any, display: Display, height: int, width: int) -> Frame:
    """Convert a frame to an upright RGB picture of a size, HWC."""
    if display.turns % 2:
        height, width = width, height
    try:
        shaped = _one_field(frame) if frame.interlaced_frame else frame
        rgb = _resized(shaped, height, width)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise MemoryError("no room to convert a frame") from error
        raise SampleError("corrupt", "a frame can't be converted to RGB") from error
    return np.rot90(rgb, display.turns) if display.turns else rgb


def is_hdr(frame: Any) -> bool:
    """Tell whether a frame is meant for a display of high dynamic range; its pixels are converted as if it were not."""
    return frame.color_trc in _HDR_TRANSFERS


def _one_field(frame: Any) -> Any:
    """Return the upper field: two moments in one picture are combs to every scorer. Needs no other frame."""
    rgb = frame.reformat(format="rgb24", threads=1).to_ndarray()
    return VideoFrame.from_ndarray(np.ascontiguousarray(rgb[0::2]), format="rgb24")


def _resized(frame: Any, height: int, width: int) -> Frame:
    if (frame.height, frame.width) == (height, width):
        same: Frame = frame.reformat(format="rgb24", threads=1).to_ndarray()  # else swscale takes every core there is
        return same
    shrinks = height <= frame.height and width <= frame.width
    way = "AREA" if shrinks else "BILINEAR"
    small: Frame = frame.reformat(width, height, "rgb24", interpolation=way, threads=1).to_ndarray()
    return small
