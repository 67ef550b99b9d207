"""One document into the arrays of a pack, compiled: the same for everybody who is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

MARKER, TEXT, VISION = 0, 1, 2
_NO_LABEL = -100


@njit(cache=True, nogil=True)  # type: ignore[misc]
def write_document(
    parts: Any, markers: Any, weights_of_parts: Any, text: Any, codes: Any, vision: Any, at: int,
    ids: Any, labels: Any, weights: Any, positions: Any,
) -> int:  # fmt: skip
    """Write a document from `at` on, and return where it ends.

    Args:
        parts: int32 (P, 4): kind, first marker, id or code, how many ids, codes a row.
        vision: first id of codes, EOL, EOF.
    """
    base, eol, eof = vision
    end = at
    for part in range(len(parts)):
        kind, start, length, columns = parts[part]
        first = end
        if kind == MARKER:
            ids[end : end + length] = markers[start : start + length]
        elif kind == TEXT:
            ids[end : end + length] = text[start : start + length]
        else:
            code = start
            place = end
            while place < end + length - 1:
                for column in range(columns):
                    ids[place + column] = base + np.int64(codes[code + column])
                code += columns
                ids[place + columns] = eol
                place += columns + 1
            ids[place] = eof
        end += length
        weight = weights_of_parts[part]
        for place in range(max(first, at + 1), end):
            weights[place - 1] = weight
            labels[place - 1] = ids[place] if weight != 0 else _NO_LABEL
    weights[end - 1] = 0
    labels[end - 1] = _NO_LABEL
    for place in range(at, end):
        positions[place] = place - at
    return end
