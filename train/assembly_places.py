"""Compiled preparation: each pack's place in the arrays of a step, and which bytes of a file each document needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.train.assembly_tables import (
    AT,
    BASE,
    BEGIN,
    BORDER,
    CODES,
    COLUMNS,
    COUNT,
    ERROR,
    FILE,
    FIRST,
    HEADER_BYTES,
    KIND,
    KIND_MARKER,
    KIND_TEXT,
    LAST,
    LAYOUT,
    LENGTH,
    PACK_END,
    PACK_FIRST,
    PACK_SIZE,
    PLACE,
    ROWS,
    SIZE,
    START,
    TEXT_IDS,
    WIDTH,
    Numbers,
    Parts,
)

_LARGEST_GAP = 16_384  # bytes read in vain rather than ask once more


@compiled
def place_packs(
    packs: Numbers,
    ends: Numbers,
    documents: Numbers,
    tokens: Numbers,
    squares: Numbers,
    context: int,
    filler: int,
    slots: Numbers,
    bounds: Numbers,
    sums: Numbers,
) -> int:
    """Give each pack its place in the arrays of a step; micro-batch m has packs [ends[m - 1], ends[m]), -1 a filler.

    Fills in `slots`, `bounds` (M + 1, 2): places and borders where micro-batches begin, and `sums` (M, 2): tokens and
    squares of each. Returns how many documents there are.
    """
    place = border = found = number = 0
    for micro in range(len(ends)):
        bounds[micro, 0], bounds[micro, 1] = place, border
        sums[micro] = 0
        base = place
        border += 1
        while number < ends[micro]:
            slot, pack = slots[number], packs[number]
            slot[PLACE], slot[BASE], slot[BORDER], slot[ERROR] = place, base, border, found
            slot[PACK_FIRST] = slot[PACK_END] = 0
            slot[PACK_SIZE] = filler
            used = 0
            if pack >= 0:
                slot[PACK_SIZE], used = context, tokens[pack]
                sums[micro, 0] += tokens[pack]
                sums[micro, 1] += squares[pack]
                found += documents[pack]
                border += documents[pack]
            border += used < slot[PACK_SIZE]
            place += slot[PACK_SIZE]
            number += 1
    bounds[len(ends), 0], bounds[len(ends), 1] = place, border
    return found


@compiled
def mark_files(slots: Numbers, documents: Numbers, is_used: NDArray[np.bool_]) -> None:
    """Say which files the documents of some packs are in."""
    for number in range(len(slots)):
        for document in range(slots[number, PACK_FIRST], slots[number, PACK_END]):
            is_used[documents[document, FILE]] = True


@compiled
def codes_before(part: Parts, place: int) -> int:
    """Count the codes of a vision part before an id of it."""
    per_row = part[COLUMNS] + 1
    per_frame = part[ROWS] * per_row + 1
    frame, rest = place // per_frame, place % per_frame
    row, column = rest // per_row, rest % per_row
    return int((frame * part[ROWS] + row) * part[COLUMNS] + column)


@compiled
def need(document: Numbers, member: int, first: int, last: int) -> None:
    """Widen what is needed of a member."""
    if first >= last:
        return
    if document[member + LAST] == 0:
        document[member + FIRST], document[member + LAST] = first, last
    else:
        document[member + FIRST] = min(document[member + FIRST], first)
        document[member + LAST] = max(document[member + LAST], last)


@compiled
def find_needs(document: Numbers, parts: Parts) -> bool:
    """Say which ids and codes a piece needs; False where it is not inside its document, or the arrays are too short."""
    place, start, end = 0, document[START], document[START] + document[LENGTH]
    for number in range(len(parts)):
        part = parts[number]
        low, high = max(start, place) - place, min(end, place + part[SIZE]) - place
        if low < high and part[KIND] == KIND_TEXT:
            need(document, TEXT_IDS, part[BEGIN] + low, part[BEGIN] + high)
        elif low < high and part[KIND] != KIND_MARKER:
            need(document, CODES, part[BEGIN] + codes_before(part, low), part[BEGIN] + codes_before(part, high))
        place += part[SIZE]
    for member in (CODES, TEXT_IDS):
        if document[member + LAST] > document[member + COUNT]:
            return False
        if document[member + LAST] > 0 and document[member + WIDTH] == 0:
            return False
    return bool(start >= 0 and document[LENGTH] > 0 and end <= place)


@compiled
def add_extent(extents: Numbers, used: int, start: int, end: int) -> int:
    """Append bytes [start, end), joined with the last stretch if little lies between; they come in ascending order."""
    if used:
        before = extents[2 * used - 2] + extents[2 * used - 1]
        if start - before <= _LARGEST_GAP:
            extents[2 * used - 1] = max(before, end) - extents[2 * used - 2]
            return used
    extents[2 * used], extents[2 * used + 1] = start, end - start
    return used + 1


@compiled
def find_extents(documents: Numbers, extents: Numbers, offsets: Numbers, parts: Parts) -> None:
    """Fill in what each document needs of its arrays, and where that lies in the file; LAYOUT -1 where it cannot be."""
    for number in range(len(documents)):
        document = documents[number]
        layout = document[LAYOUT]
        if layout < 0 or not find_needs(document, parts[offsets[layout] : offsets[layout + 1]]):
            document[LAYOUT] = -1
            continue
        used = 0
        text_first = document[TEXT_IDS + AT] < document[CODES + AT]
        for turn in range(2):
            member = TEXT_IDS if text_first == (turn == 0) else CODES
            if document[member + LAST] == 0:
                continue
            at, width = document[member + AT], document[member + WIDTH]
            data = at + HEADER_BYTES
            used = add_extent(extents[number], used, at, data)
            used = add_extent(extents[number], used, data + document[member + FIRST] * width,
                              data + document[member + LAST] * width)  # fmt: skip
