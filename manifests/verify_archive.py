"""Verify an archive against its index: the same members at the same places, each one readable and as counted.

Token archives have to hold exactly what their index says; in packed raw shards the index speaks of the sample alone,
and captions and metadata may lie beside it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import IO, Any

import numpy as np
import polars as pl

from tokenmill.manifests.archive import Member, escape_key, iterate_members
from tokenmill.manifests.findings import RERUN_RECORD, Fault
from tokenmill.manifests.identity import sha256_hex

_CODES = ("uint16", "uint32")


@dataclass(frozen=True, slots=True)
class _Expected:
    """A member that an index row speaks of; `check` returns what is wrong with its bytes, or None."""

    offset: int
    length: int
    check: Callable[[bytes], str | None]


def archive_faults(
    path: str, stream: IO[bytes], rows: pl.DataFrame | None, sizes: Mapping[str, int] | None = None
) -> list[Fault]:
    """Read an archive front to back and compare it with its index (None: only that it is a whole tar).

    `sizes` says how many `codes` and `text_ids` there are, of which none may lie beyond.
    """
    expected: dict[str, _Expected] = {}
    exact = rows is not None and "codes_offset" in rows.columns
    if rows is not None:
        expected = dict(_token_members(rows, sizes or {}) if exact else _packed_members(rows))
    faults = []
    try:
        for member, data in iterate_members(stream):
            what = _member_fault(member, data, expected.pop(member.name, None), must_be_known=exact)
            if what:
                faults.append(Fault(path, f"member {member.name}: {what}", RERUN_RECORD))
    except (tarfile.TarError, OSError) as error:
        return [Fault(path, f"not a whole tar ({' '.join(str(error).split())})", RERUN_RECORD), *faults]
    return faults + [Fault(path, f"member {name} is missing", RERUN_RECORD) for name in expected]


def _member_fault(member: Member, data: bytes, expected: _Expected | None, *, must_be_known: bool) -> str | None:
    if expected is None:
        return "its index does not name it, or twice" if must_be_known else None
    if (member.offset, member.length) != (expected.offset, expected.length):
        return (
            f"lies at {member.offset}, {member.length} bytes; its index says {expected.offset}, {expected.length} bytes"
        )
    return expected.check(data)


def _token_members(rows: pl.DataFrame, sizes: Mapping[str, int]) -> Iterator[tuple[str, _Expected]]:
    for row in rows.filter(pl.col("codes_offset").is_not_null()).iter_rows(named=True):
        key = escape_key(row["key"])
        checks: Mapping[str, tuple[str, Callable[[bytes], str | None]]] = {
            "codes.npy": ("codes", partial(_codes_fault, count=row["num_codes"], limit=sizes.get("codes"))),
            "text.npy": ("text", partial(_text_fault, count=row["num_text"], limit=sizes.get("text_ids"))),
            "json": ("json", partial(_document_fault, row=row)),
        }
        for extension, (column, check) in checks.items():
            yield f"{key}.{extension}", _Expected(row[f"{column}_offset"], row[f"{column}_length"], check)


def _packed_members(rows: pl.DataFrame) -> Iterator[tuple[str, _Expected]]:
    for row in rows.filter(pl.col("packed") & pl.col("fail_reason").is_null()).iter_rows(named=True):
        name = f"{escape_key(row['key'])}.{row['extension']}"
        if "pictures" in row:  # a document's digest is over what its JSON says
            yield name, _Expected(row["offset"], row["length"], _json_fault)
            yield from _packed_pictures(escape_key(row["key"]), row["pictures"] or ())
            continue
        yield name, _Expected(row["offset"], row["length"], partial(_content_fault, digest=row["sha256"]))


def _packed_pictures(key: str, pictures: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Expected]]:
    for number, picture in enumerate(pictures):
        check = partial(_content_fault, digest=picture["sha256"])
        yield f"{key}.{number}.{picture['extension']}", _Expected(picture["offset"], picture["length"], check)


def _json_fault(data: bytes) -> str | None:
    try:
        return None if isinstance(json.loads(data), dict) else "is no JSON object"
    except (ValueError, RecursionError):
        return "is not JSON"


def _content_fault(data: bytes, *, digest: str) -> str | None:
    return None if sha256_hex(data) == digest else "sha256 differs from its index"


def _codes_fault(data: bytes, *, count: int, limit: int | None) -> str | None:
    return _array_fault(data, count=count, kinds=_CODES) or _range_fault(data, limit, "codes", "codebook")


def _text_fault(data: bytes, *, count: int, limit: int | None) -> str | None:
    return _array_fault(data, count=count, kinds=("uint32",)) or _range_fault(data, limit, "ids", "text tokenizer")


def _range_fault(data: bytes, limit: int | None, what: str, of: str) -> str | None:
    """Say whether some value of a sound array lies beyond what there is; of old folders nobody knows."""
    begin = 10 + int.from_bytes(data[8:10], "little")
    values = np.frombuffer(data, _array_header(data[:begin])[1], offset=begin)
    if limit is None or not len(values) or int(values.max()) < limit:
        return None
    return f"its {what} reach {int(values.max())}, the {of} ends at {limit - 1}"


def _array_fault(data: bytes, *, count: int, kinds: tuple[str, ...]) -> str | None:
    begin = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, kind = _array_header(data[:begin])
    except (ValueError, EOFError) as error:
        return f"not an array ({error})"
    if len(shape) != 1 or kind.name not in kinds:
        return f"is {kind.name} of shape {shape}, not a row of {' or '.join(kinds)}"
    if len(data) != begin + shape[0] * kind.itemsize:
        return f"is {len(data)} bytes long, not as its header says"
    return None if shape[0] == count else f"has {shape[0]} values, its index counts {count}"


@lru_cache(maxsize=4096)
def _array_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Parse the head of an `.npy` file; an archive has few different ones, and numpy compiles each as Python."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0")
    shape, _, kind = np.lib.format.read_array_header_1_0(stream)
    return shape, kind


def _document_fault(data: bytes, *, row: Mapping[str, Any]) -> str | None:
    try:
        document = json.loads(data)
        if document["key"] != row["key"]:
            return f"speaks of {document['key']!r}"
        if document["segments"] != json.loads(row["segments"]):
            return "its segments are not those of its index"
        return _segments_fault(document["segments"], row["num_text"], row["num_codes"])
    except (ValueError, KeyError, TypeError) as error:
        return f"not a document ({type(error).__name__}: {error})"


def _segments_fault(segments: list[dict[str, Any]], num_text: int, num_codes: int) -> str | None:
    """Say whether the segments reach exactly to the end of the text ids and of the codes."""
    text = codes = 0
    for segment in segments:
        if "text" in segment:
            start, end = segment["text"]
            if not 0 <= start <= end:
                return f"a segment takes the text [{start}, {end})"
            text = max(text, end)
            continue
        sides = segment["vision"]
        if len(sides) != 3 or min(sides) < 1 or segment["offset"] < 0:
            return f"a segment takes a grid {sides} at code {segment['offset']}"
        codes = max(codes, segment["offset"] + int(np.prod(sides)))
    if (text, codes) != (num_text, num_codes):
        return f"its segments reach to text id {text} and code {codes}; its index counts {num_text} and {num_codes}"
    return None
