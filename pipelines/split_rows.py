"""What the split stage writes: a row for every clip, and one for every range that gave none, with the reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.filters.scenes import ClipSpan
from tokenmill.manifests.identity import digest_of, digest_of_rows
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.jobs import UnitOutput
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.split_ranges import FilmRange
from tokenmill.pipelines.split_scan import FilmTimes

SCHEMA = 2
COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "path": pl.String,
    "start_frame": pl.Int64,
    "end_frame": pl.Int64,
    "start_seconds": pl.Float64,  # since the film's start, when its first frame is shown
    "end_seconds": pl.Float64,  # when its last frame is over
    "fps": pl.Float64,  # of the film, on average
    "width_px": pl.Int32,  # upright
    "height_px": pl.Int32,
    "scene": pl.Int64,  # the first frame of the scene that the clip is a piece of
    "piece": pl.Int32,
    "pieces": pl.Int32,
    "has_audio": pl.Boolean,
    "reader": pl.String,
    "codec": pl.String,
    "pixel_format": pl.String,
    "is_interlaced": pl.Boolean,
    "is_variable_rate": pl.Boolean,
    "is_hdr": pl.Boolean,
    "sha256": pl.String,  # of the film's mark and the clip's frames: what the clip's pixels are
    "caption": pl.String,
    "metadata": pl.String,
    "drop_reason": pl.String,
    **FAILURE_COLUMNS,
}
_OF_FILM = ("has_audio", "reader", "codec", "pixel_format", "is_interlaced", "is_variable_rate", "is_hdr")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeFound:
    """What a range became: the rows of its clips, and how many scenes began in it, of which some are too short."""

    rows: Sequence[Row]
    scenes: int = 0
    short_scenes: int = 0
    seconds: float = 0.0


def clip_row(part: FilmRange, film: FilmTimes, clip: ClipSpan) -> Row:
    """Describe a clip."""
    seconds = [round(float(film.times[frame]), 6) for frame in (clip.start, clip.end)]
    metadata = json.loads(part.metadata) | {"film": part.path, "start_seconds": round(seconds[0], 3)}
    return {
        "key": f"{part.path}#{clip.start:07d}-{clip.end:07d}",
        "path": part.path,
        "start_frame": clip.start,
        "end_frame": clip.end,
        "start_seconds": seconds[0],
        "end_seconds": seconds[1],
        "fps": film.info.fps,
        "width_px": film.info.width_px,
        "height_px": film.info.height_px,
        "scene": clip.scene,
        "piece": clip.piece,
        "pieces": clip.pieces,
        **{name: getattr(film.info, name) for name in _OF_FILM},
        "sha256": digest_of([part.digest, clip.start, clip.end]),
        "caption": part.caption,
        "metadata": json.dumps(metadata, sort_keys=True, ensure_ascii=False),
    }


def split_output(ranges: Sequence[FilmRange], results: Sequence[RangeFound | SampleError]) -> UnitOutput:
    """Make a unit's table, counts (of ranges: in = kept + dropped + failed; `out` counts clips), digests, totals."""
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for part, result in zip(ranges, results, strict=True):
        nothing = {"key": part.key, "path": part.path}
        if isinstance(result, SampleError):
            failed[result.reason] += 1
            values = zip(FAILURE_COLUMNS, failure_values("split", result), strict=True)
            rows.append(nothing | dict(values))
        elif not result.rows:
            reason = _no_clip(part, result)
            dropped[reason] += 1
            rows.append({**nothing, "drop_reason": reason})
        else:
            rows += result.rows
    frame = pl.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], schema=COLUMNS)
    clips = frame.filter(pl.col("start_frame").is_not_null())
    described = clips.select("key", "sha256", "caption", "metadata")
    return UnitOutput(
        rows=frame,
        counts=Counts(
            rows_in=len(ranges),
            kept=len(ranges) - sum(dropped.values()) - sum(failed.values()),
            out=clips.height,
            dropped=dict(sorted(dropped.items())),
            failed=dict(sorted(failed.items())),
        ),
        digests={
            "content": digest_of_rows(("key", "sha256"), clips.select("key", "sha256").iter_rows()),
            "rows": digest_of_rows(described.columns, described.iter_rows()),
        },
        totals=_totals(clips, results),
    )


def _no_clip(part: FilmRange, found: RangeFound) -> str:
    if found.scenes:
        return "no_long_scene"
    return "no_picture" if part.shares == 1 else "no_scene_starts"


def _totals(clips: pl.DataFrame, results: Sequence[RangeFound | SampleError]) -> dict[str, int]:
    """Count scenes, those too short to be clips, and whole seconds: of the ranges that were cut, and of the clips."""
    found = [result for result in results if isinstance(result, RangeFound)]
    return {
        "scenes": sum(one.scenes for one in found),
        "short_scenes": sum(one.short_scenes for one in found),
        "seconds": round(sum(one.seconds for one in found)),
        "clip_seconds": round((clips["end_seconds"] - clips["start_seconds"]).sum()),
    }
