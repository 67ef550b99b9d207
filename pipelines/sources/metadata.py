"""What a source says about a sample, as JSON that any parser reads, and the same text on every run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tokenmill.manifests.identity import sha256_hex

_LONGEST_BYTES = 256  # of a value that is kept as text: a second picture in a row is no metadata
_DEEPEST = 64
_LARGEST_WHOLE = 2**53


def metadata_text(value: Mapping[str, Any]) -> str:
    """Return a row's columns as JSON: not-a-number becomes null, long bytes their length and digest, dates text.

    What lies deeper than 64 levels is replaced by a note, so that whatever parses this later can.
    """
    return json.dumps(_plain(value, 0), sort_keys=True, ensure_ascii=False, default=str, allow_nan=False)


def row_text(value: Mapping[str, Any]) -> str:
    """Return a row's columns in their order, as `metadata_text` does, in plain ASCII: any text can be stored so."""
    return json.dumps(_plain(value, 0), default=str, allow_nan=False)


def text_or_none(value: Any) -> str | None:
    """Return a caption or URL as text; absent, or not a number (what pandas writes for absent), is None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def key_or_none(value: Any) -> str | None:
    """Return a key as text; a whole number is written as one (pandas makes floats of a column with gaps)."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return str(int(value))
    return text_or_none(value)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return _plain_bytes(value)
    if isinstance(value, Mapping | list | tuple) and depth > _DEEPEST:
        return {"metadata_error": "nested too deeply"}
    if isinstance(value, Mapping):
        return {str(key): _plain(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, depth + 1) for part in value]
    return value


def _plain_bytes(value: bytes) -> Any:
    if len(value) > _LONGEST_BYTES:
        return {"bytes": len(value), "sha256": sha256_hex(value)}
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return str(value)
