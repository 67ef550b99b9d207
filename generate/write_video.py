"""Frames as a small mp4 that every browser plays: H.264, yuv420p; the same frames, the same bytes.

Written by PyAV's libx264 on one thread. 16 frames of 96 x 200 pixels are some 10 KB. What a clip says of itself stands
in the tags `title` and `comment`: an mp4 drops tags of other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from io import BytesIO
from itertools import chain
from typing import IO

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # T H W C, RGB

_QUALITY = "20"  # constant rate factor: visibly the frames themselves, not the codec
_TICKS_A_SECOND = 90_000


def mp4(
    frames: Frames, fps: float, *, longer_side_px: int | None = None, tags: Mapping[str, str] | None = None
) -> bytes:
    """Return frames (THWC RGB) as an mp4; sides are shrunk to at most `longer_side_px` and made even."""
    stream_of_bytes = BytesIO()
    write_mp4(stream_of_bytes, [frames], fps, longer_side_px=longer_side_px, tags=tags)
    return stream_of_bytes.getvalue()


def write_mp4(
    target: IO[bytes],
    runs: Iterable[Frames],
    fps: float,
    *,
    longer_side_px: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[int, int, int]:
    """Write a clip that comes in runs of frames, as `mp4` does, with one run in memory; returns its T, H and W.

    `tags` are those of mp4 files, such as `title` and `comment`.

    Raises ValueError for a clip without frames.
    """
    import av

    rest = iter(runs)
    first = next(rest, None)
    if first is None or not len(first):
        raise ValueError("a clip without frames")
    height, width = even_size(first.shape[1], first.shape[2], longer_side_px)
    number = 0
    with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS_A_SECOND)
        stream.options = {"crf": _QUALITY, "preset": "medium", "threads": "1", "flags": "+bitexact"}
        for pixels in chain.from_iterable(chain([first], rest)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(number * _TICKS_A_SECOND / fps), stream.time_base
            container.mux(stream.encode(frame))
            number += 1
        container.mux(stream.encode())
    return number, height, width


def even_size(height: int, width: int, longer_side_px: int | None) -> tuple[int, int]:
    """Return the size of the film for frames of a size."""
    scale = 1.0 if longer_side_px is None else min(1.0, longer_side_px / max(height, width))
    even_height, even_width = (max(2, round(side * scale / 2) * 2) for side in (height, width))
    return even_height, even_width


def side_by_side(one: Frames, two: Frames) -> Frames:
    """Put two clips of equal size next to each other, four pixels of grey between them, so that they play in step."""
    gap = np.full((*one.shape[:2], 4, 3), 128, np.uint8)
    return np.concatenate([one, gap, two], axis=2)
