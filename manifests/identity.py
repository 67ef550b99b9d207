"""Digests and names: what makes two settings, inputs or tables the same.

Everything is SHA-256 over canonical JSON; names on disk carry the first 16 hex digits (64 bits: 10^9 units collide with
probability 3 %, which is why the full digest stands in every record and is compared).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
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
        texts = part.select(text for name, kind in part.schema.items() for text in _json_text(name, kind))
        for name in part.columns:
            if f"odd:{name}" in texts.columns and texts[f"odd:{name}"].any():
                places = texts[f"odd:{name}"].fill_null(False).arg_true()
                values = [canonical_json(_number(value)) for value in part[name].gather(places)]
                texts = texts.with_columns(texts[f"text:{name}"].scatter(places, values))
        cells = pl.concat_str([pl.col(f"text:{name}").fill_null("null") for name in part.columns], separator=",")
        lines = texts.select(pl.concat_str([pl.lit("["), cells, pl.lit("]\n")]).str.join(""))
        state.update(lines.item().encode())
    return state.hexdigest()


def _is_plain(kind: pl.DataType) -> bool:
    return kind.is_integer() or kind.is_float() or kind in (pl.String, pl.Boolean, pl.Null)


def _json_text(name: str, kind: pl.DataType) -> Iterator[pl.Expr]:
    """Yield a column as canonical JSON and, where Python might write a value otherwise, which rows those are."""
    column, text, odd = pl.col(name), pl.col(name).cast(pl.String), None
    if kind == pl.String:
        text, odd = pl.concat_str(pl.lit('"'), column, pl.lit('"')), column.str.contains(_ESCAPED_IN_JSON)
    elif kind.is_float():
        column = column.cast(pl.Float64)
        text, size = column.cast(pl.String), column.abs()
        odd = (size != 0) & ~((size >= 1e-4) & (size < 1e15))  # the same digits, but Python may write an exponent
    yield text.alias(f"text:{name}")
    if odd is not None:
        yield odd.alias(f"odd:{name}")


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
