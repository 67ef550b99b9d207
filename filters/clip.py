"""One clip as scorers see it: frames at an even rate, decoded once for all scorers, small (EMU3.md §1: 2 a second)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # T H W C, RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which frames of clips all scorers see, and how small; Emu3's are 2 a second, the shorter edge 256 (EMU3.md §1).

    Attributes:
        fps: frames a second, at even times from a clip's first frame on; a shorter clip gives its first.
        short_side_px: frames are shrunk to this, never enlarged.
    """

    fps: float = 2.0
    short_side_px: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Sampled frames of a clip, with what is known of it.

    Attributes:
        frames: THWC RGB, T at least 1; the shorter side is `filter.video.frames.short_side_px` or the file's own.
        seconds: when each frame is shown, from the clip's first.
        fps: frames a second asked for; a file of fewer gives all it has.
        duration_s, width_px, height_px: of the clip, upright, before shrinking.
        sha256: what the clip's pixels are known by; empty where there is none.
        caption: what the source says the film shows.
    """

    frames: Frames
    seconds: NDArray[np.float64]
    fps: float
    duration_s: float
    width_px: int
    height_px: int
    has_audio: bool = False
    sha256: str = ""
    caption: str | None = None
