"""One forward pass over a film, range by range: ranges that follow each other go on where the last one stopped.

A scene belongs to the range where it begins, so a range is looked at from a few frames before its start (what the
detectors need to see, `lead_in_frames`) until the last scene that began in it is over. What is found does not hang on
where the pass began, so ranges that are done elsewhere find the same, and those done together decode no frame twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.filters.scenes import Scene, SceneFinder, SceneSettings
from tokenmill.pipelines.decode_video import VideoDecoder, VideoInfo
from tokenmill.pipelines.split_ranges import FilmRange

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmTimes:
    """What is known of a film before it is decoded; `times` holds num_frames + 1 seconds."""

    info: VideoInfo
    times: NDArray[np.float64]


class FilmScan:
    """Looks for the scenes of one film's ranges, in order; `decoded` counts the frames it asked for."""

    def __init__(self, decoder: VideoDecoder, path: Path, settings: SceneSettings, short_side_px: int) -> None:
        self._decoder = decoder
        self._path = path
        self._settings = settings
        self._short_side_px = short_side_px
        self._film: FilmTimes | SampleError | None = None
        self._finder: SceneFinder | None = None
        self._begin = self._position = 0
        self.decoded = 0

    @property
    def film(self) -> FilmTimes:
        """Open the film, once: what is wrong with it as a whole is so for each of its ranges."""
        if self._film is None:
            try:
                info = self._decoder.probe(self._path)
                self._film = FilmTimes(info=info, times=self._decoder.times(self._path))
            except SampleError as error:
                self._film = error
        if isinstance(self._film, SampleError):
            raise self._film
        return self._film

    def scenes(self, part: FilmRange) -> list[Scene]:
        """Return the scenes that begin in a range; raises SampleError."""
        start, end = part.frames(self.film.info.num_frames)
        if start == end:
            return []
        finder = self._finder_before(start)
        try:
            while self._position < self.film.info.num_frames:
                if finder.knows(end) or finder.begins_none(start, end):
                    break
                self._feed(finder)
        except SampleError:
            self._finder = None
            raise
        return finder.scenes(start, end)

    def _finder_before(self, start: int) -> SceneFinder:
        """Return the finder at work if it has seen all that counts for a range, or one that begins there."""
        finder = self._finder
        if finder is not None and self._begin <= max(0, start - finder.lead_in_frames) <= self._position:
            return finder
        finder = self._finder = SceneFinder(self._settings, self.film.times)
        self._begin = self._position = max(0, start - finder.lead_in_frames)
        return finder

    def _feed(self, finder: SceneFinder) -> None:
        end = (self._position // _BATCH + 1) * _BATCH  # whatever began where: damage costs the same ranges
        numbers = range(self._position, min(end, self.film.info.num_frames))
        finder.feed(self._position, self._decoder.frames(self._path, numbers, short_side_px=self._short_side_px))
        self._position = numbers.stop
        self.decoded += len(numbers)
