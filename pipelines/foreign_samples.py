"""One sample of a token shard of others: from its members to a row of an index, or the reason why it is none.

Nothing is trusted: arrays are read without pickle, their ids compared with the vocabulary, their grid with their size.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, SampleError
from tokenmill.manifests.archive import Member
from tokenmill.pipelines.decoding import failure_values
from tokenmill.pipelines.tokens_archive import index_columns
from tokenmill.settings_tokens import TokenShards
from tokenmill.tokenize.preference import check_pair
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment, segments_from_json, segments_to_json
from tokenmill.tokenize.vocabulary import Vocabulary

Members = Mapping[str, tuple[Member, bytes]]  # by extension
COLUMNS = index_columns("image")
_NOWHERE = Member("", 0, 0)
_NO_ARRAY = (ValueError, EOFError, OSError, BadZipFile, MemoryError, RecursionError)  # what np.load makes of bad bytes


def foreign_row(key: str, members: Members, settings: TokenShards, vocabulary: Vocabulary) -> tuple[Any, ...]:
    """Return the index row of a sample."""
    try:
        return _row(key, members, settings, vocabulary)
    except SampleError as error:
        return failed_row(key, error)
    except ManifestError as error:
        return failed_row(key, SampleError("bad_segments", str(error)))


def failed_row(key: str, error: SampleError) -> tuple[Any, ...]:
    """Return the row of a sample that has no tokens."""
    values = failure_values("tokenize", error)
    return (key, *(None,) * (len(COLUMNS) - 1 - len(values)), *values)


def _row(key: str, members: Members, settings: TokenShards, vocabulary: Vocabulary) -> tuple[Any, ...]:
    told = _json(members)
    codes_at, codes = _array(members, settings.codes, "codes", vocabulary.codebook_size)
    text_at, text = _array(members, settings.text, "text ids", vocabulary.text.size)
    if codes is None and text is None:
        wanted = ", ".join([*settings.codes, *settings.text])
        raise SampleError("missing_member", f"has none of {wanted}; it has {', '.join(sorted(members))}")
    segments = _segments(told, codes, text, settings)
    if not sum(one.end - one.start if isinstance(one, TextSegment) else one.num_codes for one in segments):
        raise SampleError("empty", "its segments hold no id")
    check_pair(segments, text, codes)
    vision = [segment for segment in segments if isinstance(segment, VisionSegment)]
    modality = "text" if not vision else "video" if any(one.t > 1 for one in vision) else "image"
    json_at = members["json"][0] if "json" in members else _NOWHERE
    places = [number for place in (codes_at, text_at, json_at) for number in (place.offset, place.length)]
    num_text, num_codes = (0 if array is None else array.size for array in (text, codes))
    crc32 = zlib.crc32(_bytes(members, codes_at))
    described = json.dumps(segments_to_json(segments), sort_keys=True)
    return (key, None, modality, described, num_text, num_codes, *places, crc32, *failure_values("tokenize", None))


def _bytes(members: Members, place: Member) -> bytes:
    return next((data for member, data in members.values() if member == place), b"")


def _json(members: Members) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        told = json.loads(members["json"][1])
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", " ".join(str(error).split())) from error
    if not isinstance(told, dict):
        raise SampleError("bad_json", f"is a {type(told).__name__}, not an object")
    return told


def _array(members: Members, names: Sequence[str], what: str, limit: int) -> tuple[Member, NDArray[Any] | None]:
    """Return the first of some members that is there, with its array; raises SampleError for one that is no ids."""
    name = next((one for one in names if one in members), None)
    if name is None:
        return _NOWHERE, None
    member, data = members[name]
    try:
        array: NDArray[Any] = np.load(BytesIO(data), allow_pickle=False)
    except _NO_ARRAY as error:
        raise SampleError("unreadable", f"{name}: not an array ({' '.join(str(error).split())})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "ui" or not 1 <= array.ndim <= 3:
        kind = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "no single array"
        raise SampleError("not_ids", f"{name}: {kind}, not 1 to 3 dimensions of whole numbers")
    if array.ndim > 1 and not array.flags.c_contiguous:
        raise SampleError("not_ids", f"{name}: in Fortran's order; write it with numpy.ascontiguousarray")
    least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if least < 0 or most >= limit:
        raise SampleError("out_of_range", f"{name}: {what} from {least} to {most}, of a vocabulary of {limit}")
    return member, array


def _segments(
    told: Mapping[str, Any], codes: NDArray[Any] | None, text: NDArray[Any] | None, settings: TokenShards
) -> list[Segment]:
    """Return what the JSON says in our own format, or one text and one picture or clip."""
    if isinstance(told.get("segments"), list):
        return _own_segments(told["segments"], 0 if codes is None else codes.size, 0 if text is None else text.size)
    for what, array in ("codes", codes), ("text ids", text):
        if array is not None and not array.size:
            raise SampleError("empty", f"holds no {what}")
    found: list[Segment] = []
    if text is not None:
        if text.ndim != 1:
            raise SampleError("not_ids", f"text ids of shape {text.shape}, not one row")
        found.append(TextSegment(0, text.size, "body" if codes is None else "caption"))
    if codes is not None:
        t, h, w = _grid(codes, told, settings)
        clip = (None, None) if t == 1 else _clip(t, told, settings)
        found.append(VisionSegment(t, h, w, 0, *clip))
    return found


def _own_segments(told: Sequence[Any], num_codes: int, num_text: int) -> list[Segment]:
    """Read segments in our own format; raises ManifestError or SampleError for what is none, or beyond the arrays."""
    if not all(isinstance(one, dict) for one in told):
        raise SampleError("bad_segments", "a segment is no object")
    segments = segments_from_json(told)
    for segment in segments:
        if isinstance(segment, TextSegment):
            numbers, end, there = [segment.start, segment.end, segment.variant], segment.end, num_text
        else:
            numbers = [segment.t, segment.h, segment.w, segment.offset]
            end, there = segment.offset + segment.num_codes, num_codes
        if not all(type(number) is int for number in numbers):
            raise SampleError("bad_segments", f"{numbers} are no whole numbers")
        if end > there:
            raise SampleError("bad_segments", f"a segment reaches to {end} of {there}")
    return segments


def _grid(codes: NDArray[Any], told: Mapping[str, Any], settings: TokenShards) -> tuple[int, int, int]:
    """Return t, h, w by the array's own shape, else by the JSON or the settings."""
    shape: Any = codes.shape if codes.ndim > 1 else settings.grid
    if isinstance(shape, str):
        if shape not in told:
            raise SampleError("no_grid", f"{codes.size} codes in one row, and its JSON has no {shape!r}")
        shape = told[shape]
    good = isinstance(shape, Sequence) and len(shape) in (2, 3) and all(type(n) is int and n > 0 for n in shape)
    if not good or math.prod(shape) != codes.size:
        raise SampleError("no_grid", f"{codes.size} codes are no grid of {shape!r}")
    t, h, w = (1, *shape) if len(shape) == 2 else shape
    return t, h, w


def _clip(t: int, told: Mapping[str, Any], settings: TokenShards) -> tuple[float, float]:
    """Return a clip's frames a second, and its seconds."""
    fps, seconds = told.get("fps", settings.fps), told.get("seconds")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1e6:
        raise SampleError("no_fps", f"a clip of {t} latent frames; its JSON has no fps, and neither has the source")
    if seconds is None:
        seconds = round(t * settings.frames_per_latent / fps, 3)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < 1e9:
        raise SampleError("no_fps", f"a clip of {seconds!r} seconds")
    return float(fps), float(seconds)
