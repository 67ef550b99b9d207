"""Packing, compiled: whole documents pack by pack, texts where they fit best, texts cut into what is left.

What waits is kept in stacks by size, with the set of sizes in use (`packing_bits.py`): packs by their room, the ids
they can still hold, documents by the room they would leave of an empty pack. A look-up costs the same whatever the
window holds, and a document 0.1 µs. `packing.py` tells in which order these are called.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.pipelines.packing_bits import Bits, clear_bit, first_from, set_bit

Ints = NDArray[np.int32]
Stacks = tuple[Ints, Ints, Bits]  # (context + 1,) item on top of each size's stack, -1; (items,) the item below; sizes

_PAIRS_TRIED = 64


@compiled
def stack_whole(waiting: Stacks, lengths: Ints, cuttable: NDArray[np.bool_]) -> int:
    """Stack the documents that stay whole, the lowest number on top; returns how many there are."""
    context = waiting[0].size - 1
    count = 0
    for document in range(lengths.size - 1, -1, -1):
        if not cuttable[document]:
            _push(waiting, context - int(lengths[document]), document)
            count += 1
    return count


@compiled
def fill_packs(rows: Ints, rooms: Stacks, waiting: Stacks) -> tuple[int, int]:
    """Fill pack by pack with the longest document that fits, at the end with the two that fit best together.

    Closing with a pair instead of the longest leaves a third of the waste of best-fit decreasing where it leaves any.

    Args:
        rows: gets (pack, document, start, length) of each piece in the order they are placed.
        rooms: gets the packs that are not full.
    Returns:
        pieces placed, packs.
    """
    context = rooms[0].size - 1
    placed = packs = 0
    shortest = 1
    while first_from(waiting[2], 0) >= 0:
        room = context
        while True:
            while shortest < context and waiting[0][context - shortest] < 0:
                shortest += 1
            longest = context - first_from(waiting[2], context - room)
            if longest > context:
                break
            first, second = longest, 0
            if room - longest < shortest and 2 * shortest <= room < context:
                first, second = _best_pair(waiting, room, shortest, longest)
            for length in (first, second):
                if length:
                    document = _pop(waiting, context - length)
                    rows[placed, 0], rows[placed, 1], rows[placed, 2], rows[placed, 3] = packs, document, 0, length
                    placed += 1
                    room -= length
        if room:
            _push(rooms, room, packs)
        packs += 1
    return placed, packs


@compiled
def _best_pair(waiting: Stacks, room: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return two lengths that fill a room better than the longest alone, or that one and 0."""
    tops, below, bits = waiting
    context = tops.size - 1
    first, second = longest, 0
    left = first_from(bits, context - room + shortest)
    for _ in range(_PAIRS_TRIED):
        longer = context - left
        if left < 0 or first + second >= 2 * longer:
            break
        shorter = context - first_from(bits, context - min(room - longer, longer))
        if shorter > context:
            break
        if longer + shorter > first + second and (longer != shorter or below[tops[left]] >= 0):
            first, second = longer, shorter
            if first + second == room:
                break
        left = first_from(bits, left + 1)
    return first, second


@compiled
def decreasing(lengths: Ints, cuttable: NDArray[np.bool_], context: int) -> Ints:
    """List the texts, the longest first, by number where equal; all that are longer than the context count as equal."""
    ends = np.zeros(context + 3, np.int64)
    for document in range(lengths.size):
        if cuttable[document]:
            ends[context + 2 - min(int(lengths[document]), context + 1)] += 1
    for rank in range(1, ends.size):
        ends[rank] += ends[rank - 1]
    order = np.empty(ends[-1], np.int32)
    for document in range(lengths.size):
        if cuttable[document]:
            rank = context + 1 - min(int(lengths[document]), context + 1)
            order[ends[rank]] = document
            ends[rank] += 1
    return order


@compiled
def open_packs(rooms: Stacks, begin: int, end: int) -> None:
    """Give packs [begin, end), which are empty, all the room there is."""
    for pack in range(begin, end):
        _push(rooms, rooms[0].size - 1, pack)


@compiled
def place_whole(rows: Ints, placed: int, rooms: Stacks, texts: Ints, lengths: Ints, taken: Ints) -> tuple[int, int]:
    """Place texts, or what is left of them, whole into the fullest pack that has room.

    Args:
        placed: pieces that are in `rows` already.
        texts: in decreasing order; those that fit nowhere are moved to its front.
        taken: ids of each document that are in a pack already.
    Returns:
        pieces placed, texts left.
    """
    left = 0
    for at in range(texts.size):
        document = int(texts[at])
        start = int(taken[document])
        length = int(lengths[document]) - start
        room = first_from(rooms[2], length)
        if room < 0:
            texts[left] = document
            left += 1
            continue
        pack = _pop(rooms, room)
        if room > length:
            _push(rooms, room - length, pack)
        rows[placed, 0], rows[placed, 1], rows[placed, 2], rows[placed, 3] = pack, document, start, length
        placed += 1
    return placed, left


@compiled
def place_cut(
    rows: Ints, placed: int, rooms: Stacks, texts: Ints, lengths: Ints, taken: Ints, min_piece: int
) -> tuple[int, int]:
    """Cut texts into the rooms, the largest first; one text is used up before the next, so that few are cut.

    Arguments as of `place_whole`; returns pieces placed, and texts that have ids left, which are moved to the front.
    """
    left = at = 0
    for size in range(rooms[0].size - 1, min_piece - 1, -1):
        pack = _pop_all(rooms, size)
        while pack >= 0:
            below = int(rooms[1][pack])
            room = size
            while room >= min_piece and at < texts.size:
                document = int(texts[at])
                start = int(taken[document])
                rest = int(lengths[document]) - start
                length = rest if rest <= room else min(room, rest - min_piece)
                if length < min_piece:  # too short to be cut, waits for a pack that takes it whole
                    texts[left] = document
                    left += 1
                    at += 1
                    continue
                rows[placed, 0], rows[placed, 1], rows[placed, 2], rows[placed, 3] = pack, document, start, length
                placed += 1
                taken[document] += length
                room -= length
                if length == rest:
                    at += 1
            if room:
                _push(rooms, room, pack)
            pack = below
    for rest_at in range(at, texts.size):
        texts[left] = texts[rest_at]
        left += 1
    return placed, left


@compiled
def by_pack(rows: Ints, packs: int) -> tuple[Ints, Ints, Ints, NDArray[np.int64]]:
    """Sort pieces by pack, in the order they were placed; returns document, start, length, and where each pack ends."""
    ends = np.zeros(packs + 1, np.int64)
    for row in range(rows.shape[0]):
        ends[rows[row, 0] + 1] += 1
    for pack in range(packs):
        ends[pack + 1] += ends[pack]
    document = np.empty(rows.shape[0], np.int32)
    start = np.empty(rows.shape[0], np.int32)
    length = np.empty(rows.shape[0], np.int32)
    for row in range(rows.shape[0]):
        at = ends[rows[row, 0]]
        ends[rows[row, 0]] += 1
        document[at], start[at], length[at] = rows[row, 1], rows[row, 2], rows[row, 3]
    return document, start, length, ends[:packs]


@compiled
def _push(stacks: Stacks, size: int, item: int) -> None:
    tops, below, bits = stacks
    below[item] = tops[size]
    tops[size] = item
    set_bit(bits, size)


@compiled
def _pop(stacks: Stacks, size: int) -> int:
    tops, below, bits = stacks
    item = int(tops[size])
    tops[size] = below[item]
    if tops[size] < 0:
        clear_bit(bits, size)
    return item


@compiled
def _pop_all(stacks: Stacks, size: int) -> int:
    """Empty a stack; returns the item that was on top, -1 if there was none."""
    tops, _below, bits = stacks
    item = int(tops[size])
    if item >= 0:
        tops[size] = -1
        clear_bit(bits, size)
    return item
