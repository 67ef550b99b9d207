"""What a drawing job left: a row a sample with the drawn ids, and its picture or clip in the unit's archive.

`drawn_samples` hands both out, for layouts of benchmarks, votes, pages: archives are read sample by sample, a few large
ranged reads each, so a job of any size takes the memory of one unit's table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.manifests.archive import escape_key
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.reading import Place, read_places
from tokenmill.pipelines.samples import FAILURE_COLUMNS

STAGE = "generate"
SCHEMA = 1
DRAWN_COLUMNS: dict[str, Any] = {
    "key": pl.String,  # of the sample in its archive: row and number, 000012-003; of a failed row that alone
    "number": pl.Int64,  # of the row in the table
    "prompt_key": pl.String,  # the row's own key, or its number
    "sample": pl.Int32,
    "prompt": pl.String,
    "negative": pl.String,
    "seed": pl.Int64,
    "modality": pl.String,
    "grid": pl.List(pl.Int32),  # latent frames, rows, columns
    "fps": pl.Float64,
    "seconds": pl.Float64,
    "ids": pl.List(pl.Int32),  # of the whole document, from BOS to EOS
    "packed": pl.Boolean,
    "extension": pl.String,
    "offset": pl.Int64,
    "length": pl.Int64,
    "sha256": pl.String,
    "metadata": pl.String,  # the row as it was given, JSON
    **FAILURE_COLUMNS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSample:
    """One picture (PNG) or clip (mp4) of a job.

    Attributes:
        key: of the sample, unique in the job: `000012-003`.
        number, sample: the row of the table, and which of its samples, both from 0 on.
        prompt_key: the row's own `key`, or its number.
        row: the row as it was given, whole: benchmarks find their own columns in it, in their order.
        grid: latent frames, rows and columns of codes.
        ids: the drawn document, from BOS to EOS; what DPO learns from.
        data: the file's bytes.
        extension: `png` or `mp4`.
    """

    key: str
    number: int
    sample: int
    prompt_key: str
    row: Mapping[str, Any]
    prompt: str
    negative: str
    seed: int
    grid: tuple[int, int, int]
    fps: float | None
    seconds: float | None
    ids: NDArray[np.int32]
    data: bytes
    extension: str

    @property
    def file(self) -> str:
        """The name of its file."""
        return file_name(self.key, self.extension)


def drawn_samples(snapshot: Snapshot) -> Iterator[DrawnSample]:
    """Yield every sample of a job in the order of its table; failed rows (`failed_rows`) have none.

    Raises:
        ManifestError: a table is not what its record says. StorageError: an archive is gone.
    """
    for commit in snapshot.commits:
        yield from _of_unit(snapshot, commit)


def drawn_rows(snapshot: Snapshot, commit: Commit, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return the rows of a unit's samples without those that failed: `DRAWN_COLUMNS` (some of them) and `file`.

    Raises ManifestError where the table is not what its record says.
    """
    wanted = list(DRAWN_COLUMNS) if columns is None else [name for name in columns if name != "file"]
    rows = snapshot.folder.read_rows(commit, list(dict.fromkeys([*wanted, "key", "extension", "fail_reason"])))
    good = rows.filter(pl.col("fail_reason").is_null())
    files = [file_name(key, extension) for key, extension in good.select("key", "extension").iter_rows()]
    named = good.with_columns(pl.Series("file", files, pl.String))
    return named if columns is None else named.select(columns)


def file_name(key: str, extension: str) -> str:
    """Name a sample's file, in its archive and wherever it is exported to."""
    return f"{escape_key(key)}.{extension}"


def failed_rows(snapshot: Snapshot) -> pl.DataFrame:
    """Return the rows of prompts that could not be drawn, with the reason."""
    tables = [snapshot.folder.read_rows(commit, list(DRAWN_COLUMNS)) for commit in snapshot.commits]
    return pl.concat([pl.DataFrame(schema=DRAWN_COLUMNS), *tables]).filter(pl.col("fail_reason").is_not_null())


def _of_unit(snapshot: Snapshot, commit: Commit) -> Iterator[DrawnSample]:
    rows = drawn_rows(snapshot, commit)
    if not rows.height:
        return
    path = snapshot.folder.at(commit.data.name)
    places = [Place(path, offset, length) for offset, length in rows.select("offset", "length").iter_rows()]
    found = read_places(snapshot.folder.store, places)
    for row, ids, data in zip(rows.drop("ids").iter_rows(named=True), rows["ids"], found, strict=True):
        yield DrawnSample(
            **{name: row[name] for name in _PLAIN},
            row=json.loads(row["metadata"]),
            grid=tuple(row["grid"]),
            ids=ids.to_numpy(),
            data=data,
        )


_PLAIN = ("key", "number", "sample", "prompt_key", "prompt", "negative", "seed", "fps", "seconds", "extension")
