"""Digests and names: what makes two settings, inputs or tables the same.

Everything is SHA-256 over canonical JSON; names on disk carry the first 16 hex digits (64 bits: 10^9 units collide with
probability 3 %, which is why the full digest stands in every record and is compared).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import polars as pl

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_ESCAPED_IN_JSON = r'["\\\x00-\x1f]'
_ROWS_AT_ONCE = 65_536


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces; equal values give equal text on every machine."""
    return _ENCODER.encode(value)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 of some bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def short(digest: str) -> str:
    """Return the 16 digits of a digest that stand in names."""
    return digest[:16]


def safe_name(name: str, limit: int = 48) -> str:
    """Return an input's name fit for a file name: its stem, unsafe characters as `_`, at most `limit` long."""
    stem = name.rsplit("/", 1)[-1].split(".", 1)[0]
    return _UNSAFE.sub("_", stem)[:limit] or "unit"


def rows_digest(frame: pl.DataFrame) -> str:
    """Return the digest of a table's logical values: column names and rows, not the bytes of any file format.

    The same as `digest_of_rows` over its rows. Columns of plain values become text column by column, a seventh of the
    time and without holding the interpreter.
    """
    if not frame.width or not all(_is_plain(kind) for kind in frame.dtypes):
        return digest_of_rows(frame.columns, frame.iter_rows())
    state = hashlib.sha256(canonical_json(frame.columns).encode())
    for part in frame.iter_slices(_ROWS_AT_ONCE):
        texts = [_json_text(column) for column in part]
        lines = pl.select(pl.concat_str([pl.lit("["), pl.concat_str(texts, separator=","), pl.lit("]\n")])).to_series()
        state.update(lines.str.join("").item().encode())
    return state.hexdigest()


def _is_plain(kind: pl.DataType) -> bool:
    return kind.is_integer() or kind.is_float() or kind in (pl.String, pl.Boolean, pl.Null)


def _json_text(column: pl.Series) -> pl.Series:
    """Return each value as canonical JSON; what polars writes otherwise than Python goes through Python."""
    text = column.cast(pl.Float64 if column.dtype.is_float() else column.dtype).cast(pl.String)
    odd = pl.Series([False])
    if column.dtype == pl.String:
        odd = column.str.contains(_ESCAPED_IN_JSON)
        text = '"' + column + '"'
    elif column.dtype.is_float():
        size = column.cast(pl.Float64).abs()  # shortest digits either way; the forms differ beyond these sizes
        odd = (size != 0) & ~((size >= 1e-4) & (size < 1e15))
    if odd.any():
        places = odd.fill_null(False).arg_true()
        text = text.scatter(places, [canonical_json(_number(value)) for value in column.gather(places)])
    return text.fill_null("null")


def digest_of_rows(columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> str:
    """Return the digest of rows streamed one by one, in their order."""
    state = hashlib.sha256(canonical_json(list(columns)).encode())
    for row in rows:
        state.update(canonical_json([_number(value) for value in row]).encode("utf-8", "surrogatepass"))
        state.update(b"\n")
    return state.hexdigest()


def _number(value: Any) -> Any:
    """Give floats that JSON cannot carry a name."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _plain(value: Any) -> Any:
    """Turn numpy scalars, tuples of dataclasses and the like into what JSON knows."""
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
)  # built once: a million units have a million digests
