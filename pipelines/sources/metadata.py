"""What a source says about a sample, as JSON that any parser reads, and the same text on every run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tokenmill.manifests.identity import sha256_hex

_LONGEST_BYTES = 256  # of a value that is kept as text: a second picture in a row is no metadata


def metadata_text(value: Mapping[str, Any]) -> str:
    """Return a row's columns as JSON: not-a-number becomes null, long bytes their length and digest, dates text."""
    try:
        return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, default=str, allow_nan=False)
    except RecursionError:
        return '{"metadata_error": "nested too deeply"}'


def text_or_none(value: Any) -> str | None:
    """Return a caption or key as text; absent, or not a number (what pandas writes for absent), is None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes) and len(value) > _LONGEST_BYTES:
        return {"bytes": len(value), "sha256": sha256_hex(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
