"""A picture, a clip or a folder of frames that somebody names by path: to pixels, with the stages' own safe decoders.

Clips are decoded in a child process with limits; a damaged file is an error of its own name. All frames that are taken
are held at once, so more than 4,096 or 2 GiB (2,730 of 512x512 pixels) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, RunError, SampleError, StorageError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.sources.webdataset import EXTENSIONS

_IMAGES = tuple(f".{one}" for one in EXTENSIONS["image"])
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenMedia:
    """Frames (THWC) of what was named; a picture has one. `seconds` are when they are shown, `fps` their rate."""

    name: str
    frames: NDArray[np.uint8]
    seconds: tuple[float, ...] = ()
    fps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which frames of a clip: at most `frames`, evenly spread, or all of them at a rate (None: the clip's own).

    `max_frames` is how many may be held at a time; more are refused.
    """

    frames: int | None = None
    fps: float | None = None
    max_frames: int = 4096


def read_media(place: str, wanted: Wanted | None = None, storage: Mapping[str, Any] | None = None) -> GivenMedia:
    """Read a picture, a clip, or a folder of pictures in the order of their numbers (which then needs `fps`).

    Raises:
        RecipeError: nothing is there, or a folder without a rate. RunError: what is there cannot be decoded.
    """
    wanted = wanted or Wanted()
    store, name = _found(place, storage or {})
    try:
        if not name:
            return _of_folder(store, place, wanted)
        if name.lower().endswith(_IMAGES):
            frame = decode_image(store.read_bytes(name), max_pixels=DecodeLimits().max_pixels)
            return GivenMedia(name=name, frames=frame[None])
        return _of_clip(store, name, wanted)
    except SampleError as error:
        raise RunError(f"{place}: {error}") from error


def _found(place: str, storage: Mapping[str, Any]) -> tuple[Store, str]:
    """Return a store and the file in it; a folder is a store of its own, without a name."""
    store = open_store(place.rstrip("/") or place, storage)
    if store.exists(""):
        folder, _, name = store.url.rpartition("/")
        return open_store(folder or "/", storage), name
    try:
        names = [one.path for one in store.files()]
    except StorageError:
        names = []
    if not names:
        raise RecipeError(f"{place}: no such picture, clip or folder of frames")
    return store, ""


def _of_folder(store: Store, place: str, wanted: Wanted) -> GivenMedia:
    names = [one.path for one in store.files() if one.path.lower().endswith(_IMAGES)]
    names.sort(key=lambda name: [int(part) if part.isdecimal() else part for part in _DIGITS.split(name)])
    if not names:
        raise RecipeError(f"{place}: no picture is in the folder")
    if wanted.fps is None:
        raise RecipeError(f"{place}: a folder of frames does not tell their rate; give --fps")
    chosen = _spread(len(names), wanted)
    frames: list[NDArray[np.uint8]] = []
    for number in chosen:
        frame = decode_image(store.read_bytes(names[number]), max_pixels=DecodeLimits().max_pixels)
        if frames and frame.shape != frames[0].shape:
            raise SampleError(
                "mixed_sizes", f"{names[number]} is {frame.shape[:2]}, the first is {frames[0].shape[:2]}"
            )
        frames.append(frame)
    seconds = tuple(number / wanted.fps for number in chosen)
    return GivenMedia(
        name=place.rstrip("/").rsplit("/", 1)[-1], frames=np.stack(frames), seconds=seconds, fps=wanted.fps
    )


def _of_clip(store: Store, name: str, wanted: Wanted) -> GivenMedia:
    with store.local_copy(name) as path, DecodeLimits().video_decoder() as decoder:
        if wanted.frames is not None:
            return _spread_over(decoder, path, name, wanted)
        info = decoder.probe(path)
        fps = wanted.fps or info.fps
        expected = round(info.seconds * fps)
        if expected > wanted.max_frames:
            told = f"{info.seconds:.1f} s at {fps:g} fps are {expected} frames; at most {wanted.max_frames} are taken"
            raise SampleError("too_many_frames", told)
        if not info.is_variable_rate and abs(fps - info.fps) < 1e-3 * info.fps:
            frames = decoder.frames(path, range(info.num_frames))
            seconds = tuple((np.arange(len(frames)) / fps).tolist())
            return GivenMedia(name=name, frames=frames, seconds=seconds, fps=round(fps, 3))
        return _at_rate(decoder, path, name, fps)


def _at_rate(decoder: VideoDecoder, path: Path, name: str, fps: float) -> GivenMedia:
    """Take the frames on show at even times; one that is on show longer is taken more than once."""
    times = decoder.times(path)
    steps = np.arange(max(1, int((times[-1] - times[0]) * fps + 1e-6))) / fps
    shown = np.searchsorted(times[:-1], times[0] + steps + 1e-6, side="right") - 1
    numbers, places = np.unique(shown, return_inverse=True)
    frames = decoder.frames(path, numbers.tolist())[places]
    return GivenMedia(name=name, frames=frames, seconds=tuple(steps.tolist()), fps=round(fps, 3))


def _spread_over(decoder: VideoDecoder, path: Path, name: str, wanted: Wanted) -> GivenMedia:
    times = decoder.times(path)
    chosen = _spread(len(times) - 1, wanted)
    frames = decoder.frames(path, chosen)
    return GivenMedia(name=name, frames=frames, seconds=tuple(times[chosen].tolist()))


def _spread(count: int, wanted: Wanted) -> list[int]:
    """Choose frames of a clip evenly, in the middle of their parts; all where none are asked for by number."""
    if wanted.frames is None:
        if count > wanted.max_frames:
            raise SampleError("too_many_frames", f"{count} frames; at most {wanted.max_frames} are taken")
        return list(range(count))
    taken = min(count, wanted.frames)
    return sorted({count * (2 * part + 1) // (2 * taken) for part in range(taken)})
