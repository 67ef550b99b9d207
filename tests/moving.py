"""Clips made of photographs: a window that moves over one by a known way, with subpixel steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from tokenmill.filters.clip import Clip

WIDTH_PX, HEIGHT_PX = 455, 256
Frames = NDArray[np.uint8]


@cache
def photograph(name: str) -> Frames:
    """Return a real photograph (HWC), at least 900 px wide and 620 px high."""
    image = load_sample_image(f"{name}.jpg") if name in ("china", "flower") else getattr(skimage.data, name)()
    scale = max(900 / image.shape[1], 620 / image.shape[0])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def window(image: Frames, at_px: tuple[float, float], size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX)) -> Frames:
    """Cut a window (width, height) out of a picture, its upper left corner at any place between pixels."""
    shift = np.array([[1, 0, -at_px[0]], [0, 1, -at_px[1]]], np.float64)
    return cv2.warpAffine(image, shift, size_px, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def path_clip(name: str, places_px: Sequence[tuple[float, float]], **changes: Any) -> Clip:
    """Let the window stand at each of these places, one frame each."""
    return clip_of(np.stack([window(photograph(name), place) for place in places_px]), **changes)


def pan(name: str, step_share: float, num_frames: int = 4, angle: float = 0.0, **changes: Any) -> Clip:
    """Move the window by this share of the shorter edge from frame to frame; `angle` in degrees."""
    step = step_share * HEIGHT_PX * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    return path_clip(name, [tuple(40 + number * step) for number in range(num_frames)], **changes)


def clip_of(frames: Frames, fps: float = 2.0, seconds: Sequence[float] | None = None) -> Clip:
    """Make a clip of frames (THWC), 1/fps apart."""
    shown = np.arange(len(frames)) / fps if seconds is None else np.asarray(seconds, float)
    return Clip(
        frames=frames, seconds=shown, fps=fps, duration_s=float(shown[-1] + 1 / fps), width_px=frames.shape[2],
        height_px=frames.shape[1],
    )  # fmt: skip
