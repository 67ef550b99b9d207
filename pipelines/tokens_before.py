"""Codes that exist already: taken from earlier archives of the same samples, so that a change of the selection, of
captions, of the vocabulary, the licence or the mask encodes only what is new.

What is taken is what would be made: codes are a function of one picture or window (`tokens_model`), so an archive is
the same bytes either way. A sample is the same when its key and the digest of its bytes are; codes are, when all that
shapes them is (`coding_of`) and, of a clip, when the frames taken are. Of older archives only the codes are read. What
is missing, damaged or no codes at all is encoded as if nothing had been there.
"""

from __future__ import annotations

import io
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.stagedir import StageConfig, StageDir, stage_dir_at
from tokenmill.pipelines.earlier_records import EarlierRecords, Record
from tokenmill.pipelines.reading import Place, read_places
from tokenmill.pipelines.samples import SampleSlice
from tokenmill.tokenize.segments import VisionSegment, segments_from_json

log = logging.getLogger(__name__)
_COLUMNS = ["key", "sha256", "segments", "num_codes", "codes_offset", "codes_length", "codes_crc32"]


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes (t, h, w) of a sample of one picture or clip, and the segment that said so."""

    codes: NDArray[np.uint32]
    segment: VisionSegment

    def fits(self, segment: VisionSegment) -> bool:
        """Tell whether these are the codes of the frames that a segment stands for."""
        mine, other = ((s.t, s.h, s.w, s.fps, s.seconds) for s in (self.segment, segment))
        return mine == other


Earlier = Sequence[tuple[StageDir, Sequence[Record]]]


@dataclass(frozen=True)
class EarlierCodes:
    """The folders of a source whose codes are those of `folder`, this one first."""

    folders: Sequence[EarlierRecords]

    @classmethod
    def of(cls, folder: StageDir) -> EarlierCodes:
        return cls([EarlierRecords(one) for one in (folder, *_folders_of_equal_codes(folder))])

    def about(self, piece: SampleSlice) -> Earlier:
        """Return the records about a slice's files; nothing is listed before somebody looks at them."""
        return [(one.folder, one.about(piece)) for one in self.folders]


def coding_of(config: StageConfig) -> dict[str, Any] | None:
    """Return all that shapes the codes of a sample, None of a folder that has no codes."""
    settings = config.settings
    if "vision" not in settings:
        return None
    vision = {name: value for name, value in settings["vision"].items() if name != "name"}
    clip = {name: value for name, value in settings.get("clip", {}).items() if name != "max_ids"}
    words = ("vocabulary", "licence", "mask")
    others = {name: value for name, value in settings.items() if name not in words}
    return {
        **others, "vision": vision, "clip": clip, "fingerprint": config.fingerprints.get("vision"),
        "version": config.version, "schema": config.schema,
    }  # fmt: skip


def codes_before(earlier: Earlier, rows: pl.DataFrame, codebook_size: int) -> dict[str, Coded]:
    """Return the codes there are of some samples, by key."""
    wanted = rows.select("key", "sha256").drop_nulls()
    found: dict[str, Coded] = {}
    for folder, records in earlier:
        for unit, attempt in records:
            if wanted.is_empty():
                return found
            try:
                found |= dict(_taken(folder, unit, attempt, wanted, codebook_size))
            except (ManifestError, StorageError) as error:
                log.debug("codes of %s are not taken over: %s", unit, error)
            wanted = wanted.filter(~pl.col("key").is_in(list(found)))
    return found


def _taken(
    folder: StageDir, unit: str, attempt: int, wanted: pl.DataFrame, codebook_size: int
) -> Iterator[tuple[str, Coded]]:
    commit = folder.read_commit(unit, attempt)
    rows = folder.read_rows(commit, _COLUMNS).filter(pl.col("codes_offset").is_not_null())
    rows = rows.join(wanted, on=["key", "sha256"], how="semi", maintain_order="left")
    archive = folder.at(commit.data.name)
    if rows.is_empty() or not folder.store.exists(archive):
        return
    places = [Place(archive, *place) for place in rows.select("codes_offset", "codes_length").iter_rows()]
    for row, data in zip(rows.iter_rows(named=True), read_places(folder.store, places), strict=True):
        coded = _sane(row, data, codebook_size)
        if coded is None:
            log.warning("%s: the codes of %s are damaged, and made again", archive, row["key"])
        else:
            yield row["key"], coded


def _sane(row: Mapping[str, Any], data: bytes, codebook_size: int) -> Coded | None:
    """Return what was read as codes, None unless it is all that its row says."""
    segments = [one for one in segments_from_json(json.loads(row["segments"])) if isinstance(one, VisionSegment)]
    if zlib.crc32(data) != row["codes_crc32"] or len(segments) != 1:
        return None
    (segment,) = segments
    try:
        codes = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    is_whole = codes.shape == (segment.t * segment.h * segment.w,) == (row["num_codes"],)
    if not is_whole or codes.dtype.kind != "u" or (codes.size and int(codes.max()) >= codebook_size):
        return None
    return Coded(codes.astype(np.uint32).reshape(segment.t, segment.h, segment.w), segment)


def _folders_of_equal_codes(folder: StageDir) -> Iterator[StageDir]:
    store, place = folder.store, f"{folder.config.stage}/{folder.source}"
    coding = coding_of(folder.config)
    for name in sorted(store.folders(place)):
        try:
            other = stage_dir_at(store, f"{place}/{name}")
        except ManifestError:  # emptied, or of a time that nobody knows any more
            continue
        if other.path != folder.path and coding is not None and coding_of(other.config) == coding:
            yield other
