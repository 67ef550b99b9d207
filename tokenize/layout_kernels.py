"""Compiled loops of layouts.py: where the numbers of a stored sample's segments stand, and parts of many documents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled

MASK = 0xFF  # stands for a number; no byte of UTF-8
_TEXT = np.frombuffer(b'"text": [', np.uint8)
_OFFSET = np.frombuffer(b'"offset": ', np.uint8)
_QUOTE, _COMMA, _SPACE, _CLOSES, _ENDS = (ord(one) for one in '", ]}')
_ZERO, _NINE = ord("0"), ord("9")


@compiled
def starts_with(data: NDArray[np.uint8], place: int, end: int, word: NDArray[np.uint8]) -> bool:
    if place + len(word) > end:
        return False
    for number in range(len(word)):  # noqa: SIM110 (numba)
        if data[place + number] != word[number]:
            return False
    return True


@compiled
def number_at(data: NDArray[np.uint8], place: int, end: int) -> tuple[int, int]:
    """Read a whole number of at most 9 digits as JSON writes it; (-1, place) where there is none."""
    value, here = 0, place
    while here < end and _ZERO <= data[here] <= _NINE:
        value = value * 10 + (data[here] - _ZERO)
        here += 1
        if here - place > 9:
            return -1, place
    if here == place or (data[place] == _ZERO and here - place > 1):
        return -1, place
    return value, here


@compiled
def mask_numbers(
    data: NDArray[np.uint8],
    ends: NDArray[np.int64],
    masked: NDArray[np.uint8],
    masked_ends: NDArray[np.int64],
    numbers: NDArray[np.int32],
    numbers_ends: NDArray[np.int64],
) -> None:
    """Copy each string with MASK in the place of the bounds of its texts and the offsets of its pictures.

    `numbers` takes those, in order. A string with numbers written in another way is copied as it is, with no numbers.
    """
    out = taken = start = 0
    for row in range(len(ends)):
        end = ends[row]
        place, out_before, taken_before = start, out, taken
        is_known = True
        while place < end:
            byte = data[place]
            masked[out] = byte
            out += 1
            place += 1
            if byte != _QUOTE:
                continue
            if starts_with(data, place - 1, end, _TEXT):
                masked[out : out + len(_TEXT) - 1] = _TEXT[1:]
                out += len(_TEXT) - 1
                place += len(_TEXT) - 1
                first, place = number_at(data, place, end)
                between = place + 1 < end and data[place] == _COMMA and data[place + 1] == _SPACE
                last, place = number_at(data, place + 2, end)
                if first < 0 or not between or last < first or place >= end or data[place] != _CLOSES:
                    is_known = False
                    break
                numbers[taken], numbers[taken + 1] = first, last
                taken += 2
                masked[out], masked[out + 1] = MASK, MASK
                out += 2
            elif starts_with(data, place - 1, end, _OFFSET):
                masked[out : out + len(_OFFSET) - 1] = _OFFSET[1:]
                out += len(_OFFSET) - 1
                first, place = number_at(data, place + len(_OFFSET) - 1, end)
                if first < 0 or place >= end or (data[place] != _COMMA and data[place] != _ENDS):
                    is_known = False
                    break
                numbers[taken] = first
                taken += 1
                masked[out] = MASK
                out += 1
        if not is_known:
            out, taken = out_before + end - start, taken_before
            masked[out_before:out] = data[start:end]
        masked_ends[row], numbers_ends[row] = out, taken
        start = end


@compiled
def lay_parts(
    structures: NDArray[np.int32],
    strings: NDArray[np.int64],
    numbers: NDArray[np.int32],
    numbers_ends: NDArray[np.int64],
    parts_of: NDArray[np.int64],
    table: NDArray[np.int32],
    offsets: NDArray[np.int64],
    kind: NDArray[np.uint8],
    loss: NDArray[np.uint8],
    fields: NDArray[Any],
) -> None:
    """Write the parts of every document: its structure's, with its own numbers.

    `table` (S, 8): kind, loss, length, start, rows, columns, number of the start and of the end or -1. `fields` (4, P)
    takes length, start, rows, columns.
    """
    for document in range(len(structures)):
        string = strings[document]
        before = numbers_ends[string - 1] if string else 0
        out = offsets[document]
        for part in range(parts_of[structures[document]], parts_of[structures[document] + 1]):
            row = table[part]
            length, start = row[2], row[3]
            if row[6] >= 0:
                start = numbers[before + row[6]]
            if row[7] >= 0:
                length = numbers[before + row[7]] - start
            kind[out], loss[out] = row[0], row[1]
            fields[0, out], fields[1, out], fields[2, out], fields[3, out] = length, start, row[4], row[5]
            out += 1
