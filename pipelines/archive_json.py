"""What archives say of a sample, as JSON that every reader takes: no NaN, no Infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(document: Mapping[str, Any]) -> str:
    """Write a sample's document; raises ValueError for a number that JSON has not."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a value as JSON can say it: null for numbers that are none (NaN, 1e999), however deep they lie."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
