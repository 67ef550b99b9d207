"""Frames of a clip file, evenly spread: what a model is shown of a video in a question.

The clip is decoded from its beginning in this process, for files that are trusted (a benchmark's); a hundred thousand
clips of a crawl go through pipelines/film.py, in children with a time limit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError


def clip_frames(
    path: str | Path, count: int, start_s: float = 0.0, end_s: float | None = None
) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """Give up to `count` frames THWC in the middle of equal stretches of the clip, and when each is shown.

    Raises:
        SampleError: `undecodable`, or `no_picture` where the stretch holds no frame.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            times = _times(container, stream, start_s, end_s)
            wanted = _spread(times, count)
        with av.open(str(path)) as container:
            frames = _decoded(container, set(wanted))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise SampleError("undecodable", f"{path}: {type(error).__name__} ({error})") from error
    return np.stack([frames[time] for time in wanted]), tuple(wanted)


def _times(container: Any, stream: Any, start_s: float, end_s: float | None) -> list[float]:
    """Read when every frame is shown from the packets, without decoding."""
    ticks = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    seconds = [float(tick * stream.time_base) for tick in ticks]
    chosen = [one for one in seconds if one >= start_s and (end_s is None or one < end_s)]
    if not chosen:
        raise SampleError("no_picture", f"no frame between {start_s:g} s and {end_s or seconds[-1:]} s")
    return chosen


def _spread(times: list[float], count: int) -> list[float]:
    taken = min(count, len(times))
    return [times[len(times) * (2 * part + 1) // (2 * taken)] for part in range(taken)]


def _decoded(container: Any, wanted: set[float]) -> dict[float, NDArray[np.uint8]]:
    found: dict[float, NDArray[np.uint8]] = {}
    for frame in container.decode(video=0):
        time = float(frame.pts * frame.time_base) if frame.pts is not None else -1.0
        if time in wanted:
            found[time] = frame.to_ndarray(format="rgb24")
            if len(found) == len(wanted):
                break
    if len(found) < len(wanted):
        raise SampleError("undecodable", f"{len(wanted) - len(found)} of {len(wanted)} frames did not come out")
    return found
