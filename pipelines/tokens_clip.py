"""A clip as codes: which of its frames, at which rate, so that clips of every length become documents that fit.

Frames are taken by the times they are shown, so a document's rate and length are true for variable frame rates too.
They are decoded, resized and encoded a model's batch at a time, the next one decoded while the model has the last: a
clip of an hour costs the memory of 128 frames. Windows of several clips are not put into one batch: a clip of 5 s at
24 fps alone is 30 windows, and on a CPU a larger batch is no faster (`tokens_model`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.tokens_before import Coded
from tokenmill.pipelines.tokens_model import Codes, SharedVision
from tokenmill.tokenize.documents import assembled_length
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.segments import Segment, VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary

Frames = NDArray[np.uint8]  # T H W C, RGB
Times = NDArray[np.float64]
Fit = Literal["whole", "sub_clip", "lowered", "runs", "cut"]

FITS: Mapping[str, str] = {
    "whole": "whole scenes",
    "sub_clip": "sub-clips",
    "lowered": "at a lower rate",
    "runs": "in runs of latent frames",
    "cut": "cut short",
}
"""How a clip became a document that fits, and what the report calls it; commit totals are named `clips.<fit>`."""

REFUSALS = ("too_long", "clip_too_short")
"""Reasons of clips that are left out by the recipe's will: nothing is wrong with them."""

_DECODED_AT_ONCE = 16
_EARLY = 0.25  # of a frame: containers round times, Matroska's to a millisecond
_ROUNDED_S = 0.0021  # by which rounding the times of its first and last frame changes a clip's length
_SHRUNK_TO = 2  # times the side that is needed, before the bicubic filter: larger frames cost more than they show


@dataclass(frozen=True, kw_only=True)
class ClipPolicy:
    """What becomes of clips of different lengths.

    Attributes:
        fps: frames a second taken; never more than the clip has.
        long: `sub_clips` and `first` refuse what is still too long, `lower_fps` takes fewer frames a second until the
            document fits, `runs` takes all (the plan makes several documents of it); `first` takes a clip's beginning.
        max_ids: of the longest document made of it, with its longest caption or all of its questions.
        min_fps: `lower_fps` goes no lower; max_seconds: what `first` takes.
    """

    fps: float
    long: Literal["sub_clips", "lower_fps", "runs", "first"]
    max_ids: int
    min_fps: float = 1.0
    max_seconds: float | None = None

    @property
    def identity(self) -> dict[str, Any]:
        value: dict[str, Any] = {"fps": self.fps, "long": self.long, "max_ids": self.max_ids}
        if self.long == "lower_fps":
            value["min_fps"] = self.min_fps
        if self.long == "first":
            value["max_seconds"] = self.max_seconds
        return value

    def rates(self, own_fps: float) -> Iterator[float]:
        """Yield the rates to try, highest first: `fps`, and under `lower_fps` its half, third, … down to `min_fps`."""
        last = min(self.fps, own_fps)
        yield last
        divisor = 2
        while self.long == "lower_fps" and (rate := self.fps / divisor) >= self.min_fps:
            if rate < last:
                yield rate
            divisor += 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a clip are encoded, and what the document will say of them."""

    numbers: NDArray[np.int64]  # in the film; a frame stands twice where it is shown that long
    segment: VisionSegment
    fit: Fit


def frames_on_show(times: Times, start: int, end: int, fps: float) -> NDArray[np.int64]:
    """Return which frames of [start, end) are on show at even times, `fps` a second or as many as the clip has.

    `times` holds when each frame begins, and when the last one ends. A frame comes twice only where the clip's own rate
    varies; there are never more than end - start.
    """
    seconds = times[end] - times[start]
    own_fps = (end - start) / seconds
    rate = min(fps, own_fps)
    early_s = _EARLY / own_fps
    wanted = times[start] + np.arange(int((seconds + early_s) * rate)) / rate + early_s
    shown = np.searchsorted(times[:end], wanted, side="right") - 1
    numbers: NDArray[np.int64] = np.clip(shown, start, end - 1).astype(np.int64)
    return numbers


def choose(
    row: Mapping[str, Any],
    times: Times,
    grid: tuple[int, int],
    texts: Sequence[Segment],
    policy: ClipPolicy,
    vocabulary: Vocabulary,
    window: int,
) -> Sampling:
    """Choose the frames of a clip; a pure function.

    Args:
        row: `start_frame`, `end_frame`, the film's `fps` and, of a piece of a scene, `pieces` above 1.
        grid: rows and columns of codes; window: frames of a latent frame.
    Raises:
        SampleError: `clip_too_short` for less than a window, `too_long` for what the policy cannot make fit.
    """
    start, end = row["start_frame"], row["end_frame"]
    behind = _first_part(times, start, end, policy)
    told = ""
    for number, rate in enumerate(policy.rates(_own_fps(row, times))):
        frames = frames_on_show(times, start, behind, rate)
        steps = len(frames) // window
        if not steps and told:  # at a higher rate it was too long, and no rate is left
            break
        if not steps:
            raise SampleError("clip_too_short", f"fewer than {window} frames at {rate:g} fps")
        frames = frames[: steps * window]
        segment = VisionSegment(steps, *grid, 0, fps=round(rate, 3), seconds=round(len(frames) / rate, 3))
        length = document_length(segment, texts, vocabulary)
        if length <= policy.max_ids or policy.long == "runs":
            fit = _fit(row, is_lowered=number > 0, is_cut=behind < end, is_long=length > policy.max_ids)
            return Sampling(numbers=frames, segment=segment, fit=fit)
        told = f"{length} ids ({steps} latent frames of {grid[0]}*{grid[1]} at {rate:.4g} fps)"
        told += f", {policy.max_ids} are allowed"
    raise SampleError("too_long", told)


def document_length(segment: VisionSegment, texts: Sequence[Segment], vocabulary: Vocabulary) -> int:
    """Count the ids of a clip's longest document: with a caption, as long before the clip as behind it, or as chat."""
    variants = sorted({getattr(text, "variant", 0) for text in texts if getattr(text, "role", "") == "caption"})
    lengths = [assembled_length([*texts, segment], "generation", vocabulary, variant) for variant in variants]
    if any(getattr(text, "role", "") == "assistant" for text in texts):
        lengths.append(assembled_length([segment, *texts], "chat", vocabulary))
    return max(lengths, default=assembled_length([segment], "unconditional", vocabulary))


def _own_fps(row: Mapping[str, Any], times: Times) -> float:
    """Return a clip's own rate: its film's, unless its times tell another one by more than a container rounds."""
    frames: int = row["end_frame"] - row["start_frame"]
    seconds = float(times[row["end_frame"]] - times[row["start_frame"]])
    film_fps = row.get("fps")
    if film_fps and abs(frames / film_fps - seconds) <= _ROUNDED_S:
        return float(film_fps)
    return frames / seconds


def _first_part(times: Times, start: int, end: int, policy: ClipPolicy) -> int:
    if policy.long != "first" or policy.max_seconds is None:
        return end
    behind = int(np.searchsorted(times, times[start] + policy.max_seconds - 1e-3))
    return min(end, max(behind, start + 1))


def _fit(row: Mapping[str, Any], *, is_lowered: bool, is_cut: bool, is_long: bool) -> Fit:
    if is_cut:
        return "cut"
    if is_long:
        return "runs"
    if is_lowered:
        return "lowered"
    return "sub_clip" if (row.get("pieces") or 1) > 1 else "whole"


@dataclass(frozen=True, kw_only=True)
class TokenArea:
    """The size at which a source's pictures or frames are encoded, in pixels; sides are multiples of `multiple`."""

    min_area: int
    max_area: int
    max_aspect: float
    multiple: int

    def of(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return height and width to resize to; raises SampleError as `target_size` does."""
        limits = {"min_area": self.min_area, "max_area": self.max_area, "multiple": self.multiple}
        return target_size(height_px, width_px, max_aspect=self.max_aspect, **limits)


class ClipEncoder:
    """Decodes, resizes and encodes clips, for several threads; `seconds` counts what decoding took in all of them."""

    def __init__(self, shared: SharedVision, policy: ClipPolicy, area: TokenArea, vocabulary: Vocabulary) -> None:
        self._shared, self._policy, self._area, self._vocabulary = shared, policy, area, vocabulary
        self._known: tuple[str, Times] | None = None
        self._lock = Lock()
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(
        self, decoder: VideoDecoder, path: Path, row: Mapping[str, Any], texts: Sequence[Segment],
        known: Coded | None = None,
    ) -> tuple[Codes, Sampling]:  # fmt: skip
        """Return the codes (t, h, w) of a clip, and which frames they are of; `known` ones if they are of the same."""
        mark = time.perf_counter()
        vision, size = self._shared.vision, self._area.of(row["height_px"], row["width_px"])
        factor, window = vision.spatial_factor, vision.temporal_factor
        grid = (size[0] // factor, size[1] // factor)
        times = self._times(decoder, path, row)
        sampling = choose(row, times, grid, texts, self._policy, self._vocabulary, window)
        if known is not None and known.fits(sampling.segment):
            return known.codes, sampling
        return self._encoded(decoder, path, sampling, size, mark), sampling

    def _encoded(
        self, decoder: VideoDecoder, path: Path, sampling: Sampling, size: tuple[int, int], mark: float
    ) -> Codes:
        codes: list[Codes] = []
        calls: list[Future[Codes]] = []
        at_once = self._shared.vision.batch_size * self._shared.vision.temporal_factor
        try:
            for first in range(0, len(sampling.numbers), at_once):
                frames = sized_frames(decoder, path, sampling.numbers[first : first + at_once], size)
                self._count("decode", mark)
                codes += [call.result() for call in calls]  # one batch with the model while the next is decoded
                calls, mark = self._shared.windows(frames), time.perf_counter()
            codes += [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()
        return np.concatenate(codes)

    def _count(self, phase: str, since: float) -> None:
        with self._lock:
            self.seconds[phase] += time.perf_counter() - since

    def _times(self, decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> Times:
        """Return a film's times, asked for once for neighbouring clips of one film."""
        known = self._known
        if known is None or known[0] != str(path):
            known = self._known = (str(path), decoder.times(path))
        check_times(known[1], row)
        return known[1]


def check_times(times: Times, row: Mapping[str, Any]) -> None:
    """Raise SampleError (`changed_since_ingest`) where a film has too few frames for a clip of it."""
    if row["end_frame"] >= len(times):
        told = f"frames up to {row['end_frame']} of a film of {len(times) - 1}"
        raise SampleError("changed_since_ingest", told)


def sized_frames(decoder: VideoDecoder, path: Path, numbers: NDArray[np.int64], size: tuple[int, int]) -> Frames:
    """Decode frames (ascending, some perhaps twice) and resize them as pictures are: bicubic.

    Frames of more than twice the size are averaged down to that by the decoder first; none is enlarged before the end.
    """
    parts = []
    for first in range(0, len(numbers), _DECODED_AT_ONCE):
        wanted, places = np.unique(numbers[first : first + _DECODED_AT_ONCE], return_inverse=True)
        frames = decoder.frames(path, list(wanted), short_side_px=_SHRUNK_TO * min(size))
        resized = [resize(frame, size) for frame in frames]
        parts += [resized[place] for place in places]
    return np.stack(parts)
