"""Write shards in img2dataset's layout: `00000.tar`, `00000.parquet`, `00000_stats.json`, keys of shard and number.

Members, columns and statistics are those of img2dataset 1.4x; headers are fixed (no time, no owner), so the same
samples give the same bytes. The trade-off: `duration` and the like are zero, where img2dataset writes clock times.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

COLUMNS: Mapping[str, Any] = {
    "caption": pl.String,
    "url": pl.String,
    "scene": pl.String,
    "captions": pl.List(pl.String),
    "key": pl.String,
    "status": pl.String,
    "error_message": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "original_width": pl.Int32,
    "original_height": pl.Int32,
    "exif": pl.String,
    "sha256": pl.String,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample: the picture (None if it has lost it), its file extension, and img2dataset's row about it."""

    key: str
    extension: str
    picture: bytes | None
    row: Mapping[str, Any]

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yield names and contents as they stand in the tar; without a picture only the caption is left."""
        caption = self.row["caption"].encode()
        if self.picture is not None:
            yield f"{self.key}.{self.extension}", self.picture
            yield f"{self.key}.json", json.dumps(self.row, indent=4).encode()
        yield f"{self.key}.txt", caption


def sample(
    shard: int, index: int, picture: bytes | None, *, extension: str, size: tuple[int, int], columns: Mapping[str, Any]
) -> Sample:
    """Describe a picture as img2dataset would; `columns` brings caption, url and the additional ones."""
    key = f"{shard:05d}{index:03d}"
    width, height = size
    row = {
        **columns,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "exif": "{}",
        "sha256": hashlib.sha256(picture or b"").hexdigest(),
    }
    return Sample(key=key, extension=extension, picture=picture, row=row)


def write_shard(
    folder: Path, shard: int, samples: Sequence[Sample], *, columns: Mapping[str, Any] = COLUMNS
) -> tuple[Path, Path, Path]:
    """Write the three files of one shard into `folder`, the statistics last; `columns` are those of its table."""
    archive = folder / f"{shard:05d}.tar"
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for written in samples:
            for name, data in written.members():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                header.mode = 0o444
                tar.addfile(header, io.BytesIO(data))
    table, statistics = folder / f"{shard:05d}.parquet", folder / f"{shard:05d}_stats.json"
    pl.DataFrame([dict(written.row) for written in samples], schema=columns).write_parquet(table)
    statistics.write_text(json.dumps(_statistics(len(samples)), indent=4))
    return archive, table, statistics


def _statistics(count: int) -> dict[str, Any]:
    return {
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": 0.0,
        "start_time": 0.0,
        "end_time": 0.0,
        "status_dict": {"success": count},
    }
