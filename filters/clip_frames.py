"""Scorers of pictures on clips: so many frames of each, evenly spread, and what they say of them put together.

`aesthetic: {frames: 3, reduce: min}` is Emu3's rule (EMU3.md §1): three frames, the lowest counts. Columns keep their
names and types. Frames of several clips fill a model's batches together, cut where the clips of a chunk begin, so that
values do not hang on who works.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import polars as pl

from tokenmill.filters.footage import Footage
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import (
    Columns,
    PreparedScorer,
    Scorer,
    check_columns,
    is_prepared,
    reads_caption_alone,
)

Frames = int | Literal["all"]
Reduce = Literal["min", "max", "mean", "median"]
_REDUCERS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "max": max,
    "mean": lambda values: math.fsum(values) / len(values),
    "median": statistics.median,
}


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Which of a clip's sampled frames a scorer of pictures sees, and how its numbers become one."""

    frames: Frames = 1
    reduce: Reduce = "mean"

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides about values: nothing for the middle frame alone."""
        return {} if self.frames == 1 else {"frames": self.frames, "reduce": self.reduce}

    def numbers(self, num_frames: int) -> list[int]:
        """Return the middle frame of each of so many equal parts; all frames where there are no more."""
        if self.frames == "all" or self.frames >= num_frames:
            return list(range(num_frames))
        return [num_frames * (2 * part + 1) // (2 * self.frames) for part in range(self.frames)]


def reduced_value(values: Sequence[Any], kind: Any, reduce: Reduce) -> Any:
    """Make one value of those of a clip's frames, in their order.

    Numbers are reduced, without the missing ones; whole numbers are rounded to whole ones. A flag is true if it is of
    all frames (min), of any (max), of more than half (mean, median). Of everything else (words, lists, hashes, for
    which polars' UInt64 is taken) the middle frame's stands.
    """
    if kind == pl.Boolean:
        known = [bool(value) for value in values if value is not None]
        least = {"min": len(known), "max": 1}.get(reduce, len(known) // 2 + 1)
        return sum(known) >= least if known else None
    if not kind.is_numeric() or kind == pl.UInt64:
        return values[len(values) // 2]
    known = [value for value in values if value is not None]
    if not known or len(values) == 1:
        return known[0] if known else None
    if any(value != value for value in known):  # not a number: whatever is asked, it is none either
        return math.nan
    value = _REDUCERS[reduce](known)
    return round(value) if kind.is_integer() else value


class OnClips:
    """A scorer as the pass calls it on footage: one that takes clips gets them whole."""

    views: ClassVar = ()

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.name, self.columns, self.batch_size = scorer.name, scorer.columns, scorer.batch_size

    def score(self, batch: Sequence[Footage]) -> Columns:
        """Score whole clips."""
        return self.scorer.score([footage.clip for footage in batch])


class PreparedOnClips(OnClips):
    """The same for a scorer with a model."""

    def prepare(self, batch: Sequence[Footage]) -> Sequence[Any]:
        """Make of each clip what the model sees."""
        return cast(PreparedScorer, self.scorer).prepare([footage.clip for footage in batch])

    def score_prepared(self, batch: Sequence[Any]) -> Columns:
        """Score what `prepare` returned."""
        return cast(PreparedScorer, self.scorer).score_prepared(batch)


class OnFrames(OnClips):
    """A scorer of pictures on the frames of clips."""

    def __init__(self, scorer: Scorer, choice: FrameChoice) -> None:
        super().__init__(scorer)
        self._choice, self._sees = choice, not reads_caption_alone(scorer)

    def score(self, batch: Sequence[Footage]) -> Columns:
        """Score clips by their frames."""
        return self._scored([self._pictures(footage) for footage in batch], self.scorer.score)

    def _pictures(self, footage: Footage) -> list[Picture]:
        if not self._sees:
            return [footage.unseen()]
        return [footage.picture(number) for number in self._choice.numbers(footage.num_frames)]

    def _scored(self, clips: Sequence[Sequence[Any]], score: Callable[[Sequence[Any]], Columns]) -> Columns:
        """Score the frames of some clips in batches, and put together what belongs to one clip."""
        frames = [frame for clip in clips for frame in clip]
        found: dict[str, list[Any]] = {column: [] for column in self.columns}
        for start in range(0, len(frames), self.batch_size):
            batch = frames[start : start + self.batch_size]
            columns = score(batch)
            check_columns(self.scorer, columns, len(batch))
            for column, values in columns.items():
                found[column].extend(values)
        return {column: self._reduced(column, clips, values) for column, values in found.items()}

    def _reduced(self, column: str, clips: Sequence[Sequence[Any]], values: Sequence[Any]) -> list[Any]:
        kind, reduce = self.columns[column], self._choice.reduce
        return [reduced_value(some, kind, reduce) for some in _parts(values, [len(clip) for clip in clips])]


class PreparedOnFrames(OnFrames):
    """A scorer of pictures with a model, on the frames of clips."""

    def prepare(self, batch: Sequence[Footage]) -> Sequence[Any]:
        """Make of each clip a list: what the model sees of its chosen frames."""
        clips = [self._pictures(footage) for footage in batch]
        small = cast(PreparedScorer, self.scorer).prepare([frame for clip in clips for frame in clip])
        return list(_parts(small, [len(clip) for clip in clips]))

    def score_prepared(self, batch: Sequence[Any]) -> Columns:
        """Score what `prepare` returned."""
        return self._scored(batch, cast(PreparedScorer, self.scorer).score_prepared)


def on_clips(scorers: Mapping[str, Scorer], choices: Mapping[str, FrameChoice]) -> dict[str, Scorer]:
    """Return scorers of clips and of pictures as scorers of footage."""
    return {name: _on_clips(scorer, choices.get(name, FrameChoice())) for name, scorer in scorers.items()}


def _on_clips(scorer: Scorer, choice: FrameChoice) -> Scorer:
    if scorer.takes == "video":
        return cast(Scorer, (PreparedOnClips if is_prepared(scorer) else OnClips)(scorer))
    return cast(Scorer, (PreparedOnFrames if is_prepared(scorer) else OnFrames)(scorer, choice))


def _parts(values: Sequence[Any], sizes: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = 0
    for size in sizes:
        yield values[start : start + size]
        start += size
