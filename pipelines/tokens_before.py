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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

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


Codes = NDArray[np.uint32]
T = TypeVar("T")
Sane = Callable[[Mapping[str, Any], bytes], T | None]
Earlier = Iterable[tuple[StageDir, Sequence[Record]]]


@dataclass(frozen=True)
class EarlierCodes:
    """The archives of a source whose codes are those of `folder`; nothing is listed before somebody looks at them."""

    folder: StageDir

    def about(self, piece: SampleSlice) -> CodesAbout:
        """Return the records about a slice's files, by folder."""
        return CodesAbout(self, piece)

    @cached_property
    def folders(self) -> Sequence[EarlierRecords]:
        return [EarlierRecords(one) for one in (self.folder, *_folders_of_equal_codes(self.folder))]


class CodesAbout:
    """Records that are looked up when somebody looks at them, or sends them to another process."""

    def __init__(self, earlier: EarlierCodes, piece: SampleSlice) -> None:
        self._earlier, self._piece = earlier, piece

    def __iter__(self) -> Iterator[tuple[StageDir, Sequence[Record]]]:
        return ((one.folder, one.about(self._piece)) for one in self._earlier.folders)

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (tuple(self),))


def coding_of(config: StageConfig) -> dict[str, Any] | None:
    """Return all that shapes the codes of a sample, None of a folder that has no codes."""
    settings = config.settings
    if "vision" not in settings:
        return None
    vision = {name: value for name, value in settings["vision"].items() if name != "name"}
    clip = {name: value for name, value in settings.get("clip", {}).items() if name != "max_ids"}
    page = {name: value for name, value in settings.get("page", {}).items() if name == "leave_out"}
    words = ("vocabulary", "licence", "mask")
    others = {name: value for name, value in settings.items() if name not in words}
    return {
        **others, "vision": vision, "clip": clip, "page": page, "fingerprint": config.fingerprints.get("vision"),
        "version": config.version, "schema": config.schema,
    }  # fmt: skip


def codes_before(earlier: Earlier, rows: pl.DataFrame, codebook_size: int) -> dict[str, Coded]:
    """Return the codes there are of some pictures or clips, by key."""
    return _before(earlier, rows, partial(_coded, codebook_size=codebook_size))


def pages_before(earlier: Earlier, rows: pl.DataFrame, codebook_size: int) -> dict[str, list[Codes]]:
    """Return the codes (h, w) there are of all pictures of some documents, in the order in which they are stored.

    By the documents' digests, which cover their pictures.
    """
    found = _before(earlier, rows, partial(_page, codebook_size=codebook_size))
    digests = dict(rows.select("key", "sha256").iter_rows())
    return {digests[key]: codes for key, codes in found.items()}


def _before(earlier: Earlier, rows: pl.DataFrame, sane: Sane[T]) -> dict[str, T]:
    wanted = rows.select("key", "sha256").drop_nulls()
    found: dict[str, T] = {}
    for folder, records in earlier:
        for unit, attempt in records:
            if wanted.is_empty():
                return found
            try:
                found |= dict(_taken(folder, unit, attempt, wanted, sane))
            except (ManifestError, StorageError) as error:
                log.debug("codes of %s are not taken over: %s", unit, error)
            wanted = wanted.filter(~pl.col("key").is_in(list(found)))
    return found


def _taken(folder: StageDir, unit: str, attempt: int, wanted: pl.DataFrame, sane: Sane[T]) -> Iterator[tuple[str, T]]:
    commit = folder.read_commit(unit, attempt)
    rows = folder.read_rows(commit, _COLUMNS).filter(pl.col("codes_offset").is_not_null())
    rows = rows.join(wanted, on=["key", "sha256"], how="semi", maintain_order="left")
    archive = folder.at(commit.data.name)
    if rows.is_empty() or not folder.store.exists(archive):
        return
    places = [Place(archive, *place) for place in rows.select("codes_offset", "codes_length").iter_rows()]
    for row, data in zip(rows.iter_rows(named=True), read_places(folder.store, places), strict=True):
        coded = sane(row, data)
        if coded is None:
            log.warning("%s: the codes of %s are damaged, and made again", archive, row["key"])
        else:
            yield row["key"], coded


def _coded(row: Mapping[str, Any], data: bytes, *, codebook_size: int) -> Coded | None:
    """Return what was read as codes, None unless it is all that its row says."""
    segments = [one for one in segments_from_json(json.loads(row["segments"])) if isinstance(one, VisionSegment)]
    codes = _sane(row, data, codebook_size)
    if codes is None or len(segments) != 1:
        return None
    (segment,) = segments
    is_whole = len(codes) == segment.num_codes
    return Coded(codes.reshape(segment.t, segment.h, segment.w), segment) if is_whole else None


def _page(row: Mapping[str, Any], data: bytes, *, codebook_size: int) -> list[Codes] | None:
    """Return the codes of a document's pictures, each once; None unless they are all that its row says."""
    segments = [one for one in segments_from_json(json.loads(row["segments"])) if isinstance(one, VisionSegment)]
    codes = _sane(row, data, codebook_size)
    places = {one.offset: one for one in segments}
    stored = [places[offset] for offset in sorted(places)]
    ends = [0, *(one.offset + one.num_codes for one in stored)]
    if codes is None or ends != [*(one.offset for one in stored), len(codes)]:
        return None
    return [codes[one.offset : one.offset + one.num_codes].reshape(one.h, one.w) for one in stored]


def _sane(row: Mapping[str, Any], data: bytes, codebook_size: int) -> Codes | None:
    """Return codes as they are stored, None for what is damaged or no codes of this codebook."""
    if zlib.crc32(data) != row["codes_crc32"]:
        return None
    try:
        codes = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    if codes.shape != (row["num_codes"],) or codes.dtype.kind != "u":
        return None
    return None if codes.size and int(codes.max()) >= codebook_size else codes.astype(np.uint32)


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
