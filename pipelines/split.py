"""Stage split: video files → clips, one row a clip (file, first frame, end frame); no file is cut.

A film above `range_bytes` is several inputs, equal shares of its frames. A scene belongs to the range where it starts:
a range's worker looks on behind its end until the scene that started in it is over, and leaves the one that was running
when the range began to the range before. What that costs is decoding up to a range's start, forward only.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.filters.scenes import SCENES_VERSION, CutFinder, SceneSettings, clips_of
from tokenmill.manifests.identity import digest_of, digest_of_rows
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decode_video import VideoDecoder, VideoInfo
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader, failure_values
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.units import group_files

VERSION = 2
SCHEMA = 1
_BATCH = 64
_COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "path": pl.String,
    "start_frame": pl.Int64,
    "end_frame": pl.Int64,
    "fps": pl.Float64,
    "width_px": pl.Int32,
    "height_px": pl.Int32,
    "sha256": pl.String,  # of the film's mark and the clip's frames: what the clip's pixels are
    "caption": pl.String,
    "metadata": pl.String,
    "drop_reason": pl.String,
    **FAILURE_COLUMNS,
}


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How films are cut, and how large a share of one a unit takes."""

    scenes: SceneSettings
    short_side_px: int
    range_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmRange:
    """Share `number` of `shares` equal shares of a film's frames."""

    path: str
    size: int
    digest: str
    caption: str | None
    metadata: str
    number: int = 0
    shares: int = 1

    @property
    def reference(self) -> InputRef:
        digest = digest_of([self.digest, self.caption, self.metadata])
        if self.shares == 1:
            return InputRef(name=self.path, digest=digest)
        share = f"shares of {self.shares}"
        return InputRef(name=self.path, digest=digest, start=self.number, end=self.number + 1, unit_of_range=share)

    @property
    def key(self) -> str:
        return self.path if self.shares == 1 else f"{self.path}#{self.number}/{self.shares}"

    def frames(self, num_frames: int) -> tuple[int, int]:
        """Return the first and the end frame of the share."""
        return num_frames * self.number // self.shares, num_frames * (self.number + 1) // self.shares


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
            **asdict(settings.scenes),
            "short_side_px": settings.short_side_px,
            **limits.settings,
        },
    )
    source = ingest.folder.source
    ranges = [part for film in _films(ingest) for part in _ranges(film, settings.range_bytes)]
    groups = group_files(ranges, max_bytes=settings.range_bytes, mean_files=8)
    return StageWork(
        title=f"split {source}",
        folders=(StageDir(store=store, source=source, config=config),),
        units=[Unit(inputs=tuple(r.reference for r in group), payload={"ranges": group}) for group in groups],
        make_worker=partial(SplitWorker, source, dict(source_settings), settings, limits),
        parents={"ingest": ingest.digest},
    )


def _films(ingest: Snapshot) -> Iterator[FilmRange]:
    for commit in ingest.commits:
        rows = ingest.folder.read_rows(commit).filter(pl.col("fail_reason").is_null())
        for row in rows.iter_rows(named=True):
            yield FilmRange(
                path=row["path"],
                size=row["length"],
                digest=row["sha256"],
                caption=row["caption"],
                metadata=row["metadata"],
            )


def _ranges(film: FilmRange, range_bytes: int) -> list[FilmRange]:
    shares = max(1, -(-film.size // range_bytes))  # an empty file is an input too: the decoder says what is wrong
    described = asdict(film)
    return [FilmRange(**(described | {"number": number, "shares": shares})) for number in range(shares)]


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
        by_key = {part.key: part for part in ranges}
        films = pl.DataFrame([{"path": part.path, "key": part.key} for part in ranges])

        def cut(decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> list[tuple[Any, ...]]:
            return self._clips(decoder, path, by_key[row["key"]])

        results = list(self._reader.clips(films, cut))
        decode_s = time.perf_counter() - started
        (target,) = job.targets
        commit = publish(job, target, _output(ranges, results))
        return JobResult(
            commits=(commit,), seconds={"decode": decode_s, "write": time.perf_counter() - started - decode_s}
        )

    def _clips(self, decoder: VideoDecoder, path: Path, part: FilmRange) -> list[tuple[Any, ...]]:
        settings = self._settings
        info = decoder.probe(path)
        start, end = part.frames(info.num_frames)
        finder, last = scan_range(decoder, path, info, (start, end), settings)
        inside = [cut for cut in finder.cuts if start <= cut < end and cut > 0]
        starts = ([0] if start == 0 else []) + inside
        if not starts:
            return []
        after = next((cut for cut in finder.cuts if cut >= end), last)
        clips = clips_of(inside, starts[0], after, info.fps, settings.scenes)
        return [_row(part, info, first, behind) for first, behind in clips]


def scan_range(
    decoder: VideoDecoder, path: Path, info: VideoInfo, frames: tuple[int, int], settings: SplitSettings
) -> tuple[CutFinder, int]:
    """Look for cuts from one frame before a range until the first behind it; returns finder and last frame."""
    finder = CutFinder(settings.scenes, info.fps)
    start, end = frames
    position = max(0, start - 1)
    while position < info.num_frames:
        batch = range(position, min(position + _BATCH, info.num_frames))
        finder.feed(position, decoder.frames(path, batch, short_side_px=settings.short_side_px))
        position = batch.stop
        if finder.cuts and finder.cuts[-1] >= end:
            return finder, position
    finder.finish()
    return finder, info.num_frames


def _row(part: FilmRange, info: VideoInfo, first: int, after: int) -> tuple[Any, ...]:
    metadata = json.loads(part.metadata) | {"film": part.path, "start_seconds": round(first / info.fps, 3)}
    return (
        f"{part.path}#{first:07d}-{after:07d}",
        part.path,
        first,
        after,
        info.fps,
        info.width_px,
        info.height_px,
        digest_of([part.digest, first, after]),
        part.caption,
        json.dumps(metadata, sort_keys=True, ensure_ascii=False),
        None,
        *failure_values("split", None),
    )


def _output(ranges: Sequence[FilmRange], results: Sequence[list[tuple[Any, ...]] | SampleError]) -> UnitOutput:
    rows: list[tuple[Any, ...]] = []
    dropped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    weights: dict[str, int] = defaultdict(int)
    for part, result in zip(ranges, results, strict=True):
        nothing = (part.key, part.path, *(None,) * 8)
        if isinstance(result, SampleError):
            failed[result.reason] += 1
            rows.append((*nothing, None, *failure_values("split", result)))
        elif not result:
            reason = "no_long_scene" if part.shares == 1 else "no_scene_starts"
            dropped[reason] += 1
            rows.append((*nothing, reason, *failure_values("split", None)))
        else:
            weights["bytes"] += part.size // part.shares
            rows += result
    frame = pl.DataFrame(rows, schema=_COLUMNS, orient="row")
    clips = frame.filter(pl.col("start_frame").is_not_null())
    kept = len(ranges) - sum(dropped.values()) - sum(failed.values())
    described = clips.select("key", "sha256", "caption", "metadata")
    return UnitOutput(
        rows=frame,
        counts=Counts(
            rows_in=len(ranges),
            kept=kept,
            out=clips.height,
            dropped=dict(sorted(dropped.items())),
            failed=dict(sorted(failed.items())),
        ),
        digests={
            "content": digest_of_rows(("key", "sha256"), clips.select("key", "sha256").iter_rows()),
            "rows": digest_of_rows(described.columns, described.iter_rows()),
        },
        totals=dict(weights),
    )
