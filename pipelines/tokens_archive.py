"""What the stage tokenize writes: archives of samples with their index, the rows of those that failed, and the sums.

Codes are small (a 512² picture is 8 KB), so those of later samples wait in memory until it is their turn in the order
of the source.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.manifests.archive import ArchiveWriter, npy_bytes
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.archive_json import json_text
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.jobs import StagedArchive, UnitOutput
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.tokens_clip import Sampling
from tokenmill.pipelines.tokens_words import Words
from tokenmill.tokenize.segments import Segment, segments_to_json

_PLACES = ("codes", "text", "json")
_INDEX_COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "sha256": pl.String,
    "modality": pl.String,
    "segments": pl.String,
    "num_text": pl.Int32,
    "num_codes": pl.Int32,
    **{f"{member}_{what}": pl.Int64 for member in _PLACES for what in ("offset", "length")},
    "codes_crc32": pl.UInt32,
}
"""`sha256` is of the raw sample, `codes_crc32` of the member `codes.npy`: what may be taken over into another archive
has to be the same sample, undamaged."""


@dataclass(slots=True)
class TokenSample:
    """A sample on its way into the archive.

    Attributes:
        row: of the index, with the carried scores.
        words: what is said of a picture or clip; body: what a text says.
        codes: (t, h, w) of each of its pictures or of its clip, in the order in which they are stored.
        clip: which frames were taken; of video alone.
        segments: of the document, pointing into `text_ids` and the stored codes; made last.
    """

    row: Mapping[str, Any]
    words: Words = field(default_factory=Words)
    body: str | None = None
    codes: list[NDArray[np.uint32]] = field(default_factory=list)
    clip: Sampling | None = None
    segments: list[Segment] = field(default_factory=list)
    text_ids: NDArray[np.uint32] | None = None
    error: SampleError | None = None


def archive_row(
    writer: ArchiveWriter, sample: TokenSample, document: Mapping[str, Any], modality: str, codebook_size: int
) -> tuple[Any, ...]:
    """Write a sample's members, if it has any; returns its row of the index.

    `document` is what the sample's JSON says beside its segments.
    """
    key, sha256 = sample.row["key"], sample.row["sha256"]
    fit = () if modality != "video" else (None if sample.clip is None or sample.error else sample.clip.fit,)
    if sample.error is not None:
        blank = (None,) * (len(_INDEX_COLUMNS) - 2)
        return (key, sha256, *blank, *fit, *failure_values("tokenize", sample.error))
    assert sample.text_ids is not None
    codes = _stored_codes(sample.codes, codebook_size)
    described = segments_to_json(sample.segments)
    members = {
        "codes.npy": npy_bytes(codes),
        "text.npy": npy_bytes(sample.text_ids),
        # Half of a surrogate pair, which metadata may hold, becomes JSON's own escape for it.
        "json": json_text({"segments": described, **document}).encode("utf-8", "backslashreplace"),
    }
    placed = writer.add(key, members)
    places = [placed[name] for name in ("codes.npy", "text.npy", "json")]
    return (
        key,
        sha256,
        modality,
        json.dumps(described, sort_keys=True),
        len(sample.text_ids),
        len(codes),
        *(number for place in places for number in (place.offset, place.length)),
        zlib.crc32(members["codes.npy"]),
        *fit,
        *failure_values("tokenize", None),
    )


def index_columns(modality: str) -> dict[str, Any]:
    return _INDEX_COLUMNS | ({"fit": pl.String} if modality == "video" else {}) | FAILURE_COLUMNS


def _stored_codes(codes: Sequence[NDArray[np.uint32]], codebook_size: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return all codes flattened in the format's type: uint16, or uint32 for codebooks over 65,536."""
    kind = np.uint16 if codebook_size <= 2**16 else np.uint32
    return np.concatenate([np.zeros(0, np.uint32), *(grid.ravel() for grid in codes)]).astype(kind)


def archive_output(frame: pl.DataFrame, failed: Mapping[str, int], archive: StagedArchive) -> UnitOutput:
    """Return what a unit became; `failed` counts its samples without tokens by reason."""
    kept = len(frame) - sum(failed.values())
    totals = {
        "text_ids": int(frame["num_text"].sum() or 0),
        "codes": int(frame["num_codes"].sum() or 0),
        "bytes": archive.bytes,
    }
    if "fit" in frame.columns:
        fits = Counter(frame["fit"].drop_nulls())
        totals |= {f"clips.{fit}": number for fit, number in sorted(fits.items())}
    counts = Counts(rows_in=len(frame), kept=kept, out=kept, failed=dict(sorted(failed.items())))
    return UnitOutput(rows=frame, counts=counts, totals=totals, archive=archive)
