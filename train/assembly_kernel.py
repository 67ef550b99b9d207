"""The compiled part of the loader: from bytes of shards to the arrays of packs, without the interpreter's lock.

For each document: read the bytes that its piece needs, check the headers of its arrays, copy ids and codes to where the
model reads them, with labels, weights and positions, in one pass (5 µs for 4,096 codes). What is not as expected is an
error and becomes padding; the reference then says why. Plain `pread`, never a memory map: a file that is cut off while
it is read gives a short answer and not a signal.

Labels and weights are written one place to the left of ids. The arrays for them here begin one place earlier instead,
so that `labels[i]` belongs to position i - 1.

N documents, P parts, S packs; the tables are those of assembly_tables.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.train.assembly_places import codes_before
from tokenmill.train.assembly_tables import (
    AT,
    BASE,
    BEGIN,
    BORDER,
    CODEBOOK_SIZE,
    CODES,
    COLUMNS,
    COUNT,
    EOF,
    EOL,
    ERROR,
    EXTENTS,
    FILE,
    FIRST,
    GOOD,
    HEADER_BYTES,
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
    PACK_END,
    PACK_FIRST,
    PACK_SIZE,
    PAD,
    PLACE,
    ROWS,
    SIZE,
    START,
    TEXT_BASE,
    TEXT_IDS,
    TEXT_SIZE,
    UNREAD,
    VISION_BASE,
    WIDTH,
    Numbers,
    Parts,
)

_TRIES = 8  # of an interrupted read
_BEFORE = np.frombuffer(b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (", np.uint8).copy()
_WIDTH_PLACE = 23
_BEHIND = np.frombuffer(b",), }", np.uint8).copy()
_ZERO, _COMMA, _SPACE, _LINE = ord("0"), ord(","), ord(" "), ord("\n")
_LAST_DIGIT = HEADER_BYTES - 8  # of a shape, what ends a header stands behind it
_pread: Any = types.ExternalFunction("pread", types.intp(types.intc, types.uintp, types.uintp, types.int64))


@compiled
def padded(length: int) -> int:
    """Round up, so that every stretch in the buffer begins where numbers may."""
    return (length + 7) & ~7


@compiled
def read_extents(descriptor: int, extents: Numbers, buffer: NDArray[np.uint8]) -> bool:
    """Read a document's stretches of a file behind one another."""
    place = 0
    for number in range(EXTENTS):
        start, length = extents[2 * number], extents[2 * number + 1]
        got, tries = 0, 0
        while got < length:
            now = _pread(descriptor, buffer.ctypes.data + place + got, length - got, start + got)
            tries += 1
            if now == 0 or tries > _TRIES + length // 4096:
                return False
            got += max(now, 0)  # interrupted: again; what lasts is told by the reference
        place += padded(length)
    return True


@compiled
def place_of(extents: Numbers, offset: int) -> int:
    """Say where a byte of the file lies in the buffer; it is there, by `find_extents`."""
    place = 0
    for number in range(EXTENTS):
        start, length = extents[2 * number], extents[2 * number + 1]
        if start <= offset < start + length:
            return int(place + offset - start)
        place += padded(length)
    return -1


@compiled
def header_fits(header: NDArray[np.uint8], width: int, count: int) -> bool:
    """Compare with the header that numpy writes for `count` numbers of uint16 or uint32, in one row or a grid."""
    size = len(_BEFORE)
    for place in range(size):
        expected = _ZERO + width if place == _WIDTH_PLACE else _BEFORE[place]
        if header[place] != expected:
            return False
    place, items, dimensions = size, 1, 0
    while dimensions == 0 or (header[place] == _COMMA and header[place + 1] == _SPACE):
        place += 2 if dimensions else 0
        first, number = place, 0
        while place < _LAST_DIGIT and number <= count and _ZERO <= header[place] <= _ZERO + 9:
            number = number * 10 + header[place] - _ZERO
            place += 1
        items *= number
        if place == first or header[first] == _ZERO or items > count:
            return False
        dimensions += 1
    skipped = 0 if dimensions == 1 else 1  # (3,) has a comma, (3, 4) none
    for number in range(skipped, len(_BEHIND)):
        if header[place + number - skipped] != _BEHIND[number]:
            return False
    for number in range(place + len(_BEHIND) - skipped, HEADER_BYTES - 1):
        if header[number] != _SPACE:
            return False
    return bool(items == count and header[HEADER_BYTES - 1] == _LINE)


@compiled
def items_at(document: Numbers, member: int, extents: Numbers, buffer: NDArray[np.uint8]) -> int:
    """Return where a member's first needed item lies in the buffer; -1 if its header is not as expected."""
    if document[member + LAST] == 0:
        return 0
    header = place_of(extents, document[member + AT])
    width = document[member + WIDTH]
    if not header_fits(buffer[header : header + HEADER_BYTES], width, document[member + COUNT]):
        return -1
    place = place_of(extents, document[member + AT] + HEADER_BYTES + document[member + FIRST] * width)
    return place if place % width == 0 else -1


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
    documents: Numbers,
    extents: Numbers,
    offsets: Numbers,
    parts: Parts,
    marker_ids: Parts,
    descriptors: Numbers,
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
    """Write the packs of `slots`; returns how many documents could not be, which `errors` tells one by one.

    Bytes of a document come from its file's descriptor, or from `fetched` where that is negative: fetched_at[e] is its
    place there, -1 where it did not come. `labels` and `weights` begin one place before ids.
    """
    failed = 0
    for number in range(len(slots)):
        slot = slots[number]
        place, error, border = slot[PLACE], slot[ERROR], slot[BORDER]
        end = place + slot[PACK_SIZE]
        for document in range(slot[PACK_FIRST], slot[PACK_END]):
            row, stretches = documents[document], extents[document]
            length, layout = row[LENGTH], row[LAYOUT]
            outcome, buffer = NO_LAYOUT, scratch
            if layout >= 0:
                outcome = GOOD
                descriptor = descriptors[row[FILE]]
                if descriptor >= 0:
                    outcome = GOOD if read_extents(descriptor, stretches, scratch) else UNREAD
                elif fetched_at[error] >= 0:
                    buffer = fetched[fetched_at[error] :]
                else:
                    outcome = UNREAD
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
