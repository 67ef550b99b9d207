"""Stage split: video files → clips, one row a clip (file, first frame, end frame); no file is cut or encoded again.

films → ranges (`split_ranges`) → scenes (`split_scan`, `filters/scenes`) → clips, as rows (`split_rows`). A fault costs
the range it stands in; where all ranges of a film fail, it counts as one bad film.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.filters.scenes import SCENES_VERSION, SceneSettings, clips_of
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, publish
from tokenmill.pipelines.split_ranges import FilmRange, film_ranges, grouped_ranges
from tokenmill.pipelines.split_rows import SCHEMA, RangeFound, clip_row, split_output
from tokenmill.pipelines.split_scan import FilmScan

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How films are cut, and how large a share of one a range and a unit take."""

    scenes: SceneSettings
    short_side_px: int
    range_seconds: float
    unit_seconds: float


def split_work(
    store: Store, ingest: Snapshot, source_settings: Mapping[str, Any], settings: SplitSettings, limits: DecodeLimits
) -> StageWork:
    """Describe the splitting of one source's films."""
    config = StageConfig(
        stage="split",
        version=VERSION,
        schema=SCHEMA,
        settings={
            "scenes_version": SCENES_VERSION,
            **settings.scenes.identity,
            "short_side_px": settings.short_side_px,
            **limits.settings,
        },
    )
    source = ingest.folder.source
    groups = grouped_ranges(film_ranges(ingest, settings.range_seconds), settings.unit_seconds)
    return StageWork(
        title=f"split {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=[Unit(inputs=tuple(r.reference for r in group), payload={"ranges": group}) for group in groups],
        make_worker=partial(SplitWorker, source, dict(source_settings), settings, limits),
        parents={"ingest": ingest.digest},
    )


class SplitWorker:
    """Finds the scenes of films, each at its own risk."""

    def __init__(
        self, source: str, source_settings: Mapping[str, Any], settings: SplitSettings, limits: DecodeLimits
    ) -> None:
        self._settings = settings
        self._reader = SampleReader(source, source_settings, limits)

    def close(self) -> None:
        self._reader.close()

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        ranges: Sequence[FilmRange] = job.unit.payload["ranges"]
        films = [list(group) for _, group in groupby(ranges, key=lambda part: part.path)]
        named = [{"path": film[0].path, "sha256": film[0].digest, "film": number} for number, film in enumerate(films)]
        rows = pl.DataFrame(named)

        def cut(decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> list[RangeFound | SampleError]:
            return self._cut(decoder, path, films[row["film"]])

        found: list[RangeFound | SampleError] = []
        for film, results in zip(films, self._reader.clips(rows, cut), strict=True):
            found += _errors(film, results) if isinstance(results, SampleError) else results
        decode_s = time.perf_counter() - started
        (target,) = job.targets
        commit = publish(job, target, split_output(ranges, found))
        return JobResult(
            commits=(commit,), seconds={"decode": decode_s, "write": time.perf_counter() - started - decode_s}
        )

    def _cut(self, decoder: VideoDecoder, path: Path, ranges: Sequence[FilmRange]) -> list[RangeFound | SampleError]:
        """Look at ranges of one film, in order; raises _FilmError where none can be read."""
        scan = FilmScan(decoder, path, self._settings.scenes, self._settings.short_side_px)
        results: list[RangeFound | SampleError] = []
        for part in ranges:
            try:
                results.append(self._found(scan, part))
            except SampleError as error:
                results.append(error)
        errors = [result for result in results if isinstance(result, SampleError)]
        if len(errors) == len(results):
            raise _FilmError(errors)
        return results

    def _found(self, scan: FilmScan, part: FilmRange) -> RangeFound:
        scenes, times = scan.scenes(part), scan.film.times
        clips = clips_of(scenes, times, self._settings.scenes)
        start, end = part.frames(scan.film.info.num_frames)
        return RangeFound(
            rows=[clip_row(part, scan.film, clip) for clip in clips],
            scenes=len(scenes),
            short_scenes=len(scenes) - len({clip.scene for clip in clips}),
            seconds=float(times[end] - times[start]),
        )


class _FilmError(SampleError):
    """All ranges of a film failed: one failure more for the budget, however many they are."""

    def __init__(self, errors: Sequence[SampleError]) -> None:
        super().__init__(errors[0].reason, errors[0].message, transient=errors[0].transient)
        self.errors = errors


def _errors(film: Sequence[FilmRange], error: SampleError) -> list[SampleError]:
    return list(error.errors) if isinstance(error, _FilmError) else [error] * len(film)
