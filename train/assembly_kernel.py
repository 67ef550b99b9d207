"""The compiled part of the loader: from bytes of shards to the arrays of packs, without the interpreter's lock.

For each document: read the bytes that its piece needs, check the headers of its arrays, copy ids and codes to where the
model reads them, with labels, weights and positions, in one pass (5 µs for 4,096 codes). What is not as expected is an
error and becomes padding; the reference then says why.

Labels and weights are written one place to the left of ids. The arrays for them here begin one place earlier instead,
so that `labels[i]` belongs to position i - 1.

N documents, P parts, S packs; the tables are those of assembly_tables.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.train.assembly_places import codes_before, documents_of
from tokenmill.train.assembly_reading import bytes_of, items_at
from tokenmill.train.assembly_tables import (
    BASE,
    BEGIN,
    BORDER,
    CODEBOOK_SIZE,
    CODES,
    COLUMNS,
    EOF,
    EOL,
    ERROR,
    FILE,
    FIRST,
    GOOD,
    KIND,
    KIND_MARKER,
    KIND_TEXT,
    LAST,
    LAYOUT,
    LENGTH,
    LOSS,
    NO_HEADER,
    NO_LABEL,
    NO_LAYOUT,
    OUT_OF_RANGE,
    PACK_SIZE,
    PAD,
    PLACE,
    ROWS,
    SIZE,
    START,
    TEXT_BASE,
    TEXT_IDS,
    TEXT_SIZE,
    VISION_BASE,
    WIDTH,
    Numbers,
    Parts,
)


@compiled
def put(ids: Numbers, labels: Numbers, weights: NDArray[np.float32], place: int, value: int, weight: float) -> None:
    """Write one id."""
    ids[place] = value
    labels[place] = value if weight != 0 else NO_LABEL
    weights[place] = weight


@compiled
def copy_items(
    ids: Numbers,
    labels: Numbers,
    weights: NDArray[np.float32],
    place: int,
    items: NDArray[Any],
    base: int,
    weight: float,
) -> int:
    """Write ids item + base; returns the largest item. One loop that the compiler turns into vectors."""
    count = len(items)
    to_ids, to_labels, to_weights = (
        ids[place : place + count],
        labels[place : place + count],
        weights[place : place + count],
    )
    largest = np.uint32(0)
    for number in range(count):
        item = np.uint32(items[number])
        largest = max(largest, item)
        to_ids[number] = np.int64(item) + base
        to_labels[number] = np.int64(item) + base
        to_weights[number] = weight
    if weight == 0:
        to_labels[:] = NO_LABEL
    return int(largest)


@compiled
def copy_grid(
    ids: Numbers,
    labels: Numbers,
    weights: NDArray[np.float32],
    place: int,
    codes: NDArray[Any],
    part: Parts,
    low: int,
    high: int,
    names: Numbers,
    weight: float,
) -> int:
    """Write ids [low, high) of a vision part, whose needed codes are `codes`; returns the largest code."""
    columns, per_row = part[COLUMNS], part[COLUMNS] + 1
    rest = low % (part[ROWS] * per_row + 1)
    row, column = rest // per_row, rest % per_row
    taken, largest = 0, 0
    end = place + high - low
    while place < end:
        if row == part[ROWS]:
            put(ids, labels, weights, place, names[EOF], weight)
            place, row = place + 1, 0
            continue
        count = min(columns - column, end - place)
        largest = max(
            largest,
            copy_items(ids, labels, weights, place, codes[taken : taken + count], names[VISION_BASE], weight),
        )
        taken, place = taken + count, place + count
        if place < end:
            put(ids, labels, weights, place, names[EOL], weight)
            place += 1
        row, column = row + 1, 0
    return largest


@compiled
def copy_part(
    ids: Numbers,
    labels: Numbers,
    weights: NDArray[np.float32],
    place: int,
    items: NDArray[Any],
    first: int,
    part: Parts,
    low: int,
    high: int,
    names: Numbers,
    weight: float,
) -> bool:
    """Write ids [low, high) of texts or codes; `items` begin with number `first`. False: an id is too large."""
    if part[KIND] == KIND_TEXT:
        begin = part[BEGIN] + low - first
        texts = items[begin : begin + high - low]
        largest = copy_items(ids, labels, weights, place, texts, names[TEXT_BASE], weight)
        return bool(largest < names[TEXT_SIZE])
    begin = part[BEGIN] + codes_before(part, low) - first
    end = part[BEGIN] + codes_before(part, high) - first
    largest = copy_grid(ids, labels, weights, place, items[begin:end], part, low, high, names, weight)
    return bool(largest < names[CODEBOOK_SIZE])


@compiled
def copy_piece(
    ids: Numbers,
    labels: Numbers,
    weights: NDArray[np.float32],
    place: int,
    document: Numbers,
    extents: Numbers,
    parts: Parts,
    marker_ids: Parts,
    buffer: NDArray[np.uint8],
    names: Numbers,
    class_weights: NDArray[np.float32],
) -> int:
    """Write a document's piece at `place`; returns what became of it."""
    codes_at, text_at = items_at(document, CODES, extents, buffer), items_at(document, TEXT_IDS, extents, buffer)
    if codes_at < 0 or text_at < 0:
        return NO_HEADER
    at, start, end = 0, document[START], document[START] + document[LENGTH]
    for number in range(len(parts)):
        part = parts[number]
        low, high = max(start, at) - at, min(end, at + part[SIZE]) - at
        to, weight = place + at + low - start, class_weights[part[LOSS]]
        at += part[SIZE]
        if low >= high:
            continue
        if part[KIND] == KIND_MARKER:
            for one in range(low, high):
                put(ids, labels, weights, to + one - low, marker_ids[part[BEGIN] + one], weight)
            continue
        member, begin = (TEXT_IDS, text_at) if part[KIND] == KIND_TEXT else (CODES, codes_at)
        first, width = document[member + FIRST], document[member + WIDTH]
        stretch = buffer[begin : begin + (document[member + LAST] - first) * width]
        if width == 2:
            fits = copy_part(ids, labels, weights, to, stretch.view(np.uint16), first, part, low, high, names, weight)
        else:
            fits = copy_part(ids, labels, weights, to, stretch.view(np.uint32), first, part, low, high, names, weight)
        if not fits:
            return OUT_OF_RANGE
    return GOOD


@compiled
def assemble_packs(
    slots: Numbers,
    rows: Numbers,
    first_pack: int,
    low: int,
    documents: Numbers,
    extents: Numbers,
    offsets: Numbers,
    parts: Parts,
    marker_ids: Parts,
    descriptors: Numbers,
    addresses: Numbers,
    wholes: Numbers,
    fetched: NDArray[np.uint8],
    fetched_at: Numbers,
    scratch: NDArray[np.uint8],
    names: Numbers,
    class_weights: NDArray[np.float32],
    ids: Numbers,
    labels: Numbers,
    weights: NDArray[np.float32],
    positions: Numbers,
    borders: Parts,
    errors: NDArray[np.uint8],
) -> int:
    """Write the packs of `slots` that are taken from a block; returns how many documents could not be.

    `errors` tells it one by one. `rows`, first_pack and `low` say which packs (assembly_places.documents_of).
    Bytes of a document come as assembly_reading.bytes_of says; fetched_at[e] is its place in `fetched`. `labels` and
    `weights` begin one place before ids.
    """
    failed = 0
    for number in range(len(slots)):
        slot = slots[number]
        first, last, is_taken = documents_of(slot, rows, first_pack, low)
        if not is_taken:
            continue
        place, error, border = slot[PLACE], slot[ERROR], slot[BORDER]
        end = place + slot[PACK_SIZE]
        for document in range(first, last):
            row, stretches = documents[document], extents[document]
            length, layout = row[LENGTH], row[LAYOUT]
            outcome, buffer = NO_LAYOUT, scratch
            if layout >= 0:
                file, at = row[FILE], fetched_at[error] if len(fetched_at) else -1
                outcome, buffer, stretches = bytes_of(stretches, descriptors[file], addresses[file], wholes[file],
                                                      fetched, at, scratch)  # fmt: skip
            if outcome == GOOD:
                own = parts[offsets[layout] : offsets[layout + 1]]
                outcome = copy_piece(ids, labels, weights, place, row, stretches, own, marker_ids, buffer, names,
                                     class_weights)  # fmt: skip
            if outcome != GOOD:
                failed += 1
                blank(ids, labels, weights, place, place + length, names[PAD])
            errors[error] = outcome
            labels[place], weights[place] = NO_LABEL, 0
            count_up(positions[place : place + length])
            place, error, border = place + length, error + 1, border + 1
            borders[border - 1] = place - slot[BASE]
        labels[place], weights[place] = NO_LABEL, 0
        if place < end:
            blank(ids, labels, weights, place, end, names[PAD])
            labels[end], weights[end] = NO_LABEL, 0
            count_up(positions[place:end])
            borders[border] = end - slot[BASE]
    return failed


@compiled
def blank(ids: Numbers, labels: Numbers, weights: NDArray[np.float32], place: int, end: int, pad: int) -> None:
    ids[place:end], labels[place:end], weights[place:end] = pad, NO_LABEL, 0


@compiled
def count_up(positions: Numbers) -> None:
    for number in range(len(positions)):
        positions[number] = number
