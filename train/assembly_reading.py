"""The compiled part's bytes: of a mapped file, read by `pread`, or fetched before; and the headers of arrays in them.

A file that is cut off while `pread` reads it gives a short answer; a mapped one gives the process a signal, so maps are
used only where the settings ask for them (`train.loader.memory_map`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from tokenmill.compiled import compiled
from tokenmill.train.assembly_tables import (
    AT,
    COUNT,
    EXTENTS,
    FIRST,
    GOOD,
    HEADER_BYTES,
    LAST,
    UNREAD,
    WIDTH,
    Numbers,
)

_TRIES = 8  # of an interrupted read
_BEFORE = np.frombuffer(b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (", np.uint8).copy()
_WIDTH_PLACE = 23
_BEHIND = np.frombuffer(b",), }", np.uint8).copy()
_ZERO, _COMMA, _SPACE, _LINE = ord("0"), ord(","), ord(" "), ord("\n")
_LAST_DIGIT = HEADER_BYTES - 8  # of a shape, what ends a header stands behind it
_pread: Any = types.ExternalFunction("pread", types.intp(types.intc, types.uintp, types.uintp, types.int64))


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    """Give an address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@compiled
def mapped_bytes(address: int, size: int) -> NDArray[np.uint8]:
    """Give memory as an array."""
    return carray(_pointer(address), (size,), np.uint8)  # type: ignore[no-any-return]


@compiled
def lie_within(extents: Numbers, size: int) -> bool:
    """Whether a file is long enough for a document's stretches."""
    for number in range(EXTENTS):
        start, length = extents[2 * number], extents[2 * number + 1]
        if start < 0 or length < 0 or start + length > size:
            return False
    return True


@compiled
def bytes_of(
    extents: Numbers,
    descriptor: int,
    address: int,
    whole: Numbers,
    fetched: NDArray[np.uint8],
    fetched_at: int,
    scratch: NDArray[np.uint8],
) -> tuple[int, NDArray[np.uint8], Numbers]:
    """Give the bytes of a document, and which stretches of the file they are; first what became of it.

    Those of the file mapped at an address, whose only stretch is the `whole`; or what its descriptor gives; or, where
    that is negative, those at a place of `fetched`, if that is not negative.
    """
    if address != 0:
        size = whole[1]
        return GOOD if lie_within(extents, size) else UNREAD, mapped_bytes(address, size), whole
    if descriptor >= 0:
        return GOOD if read_extents(descriptor, extents, scratch) else UNREAD, scratch, extents
    if fetched_at >= 0:
        return GOOD, fetched[fetched_at:], extents
    return UNREAD, scratch, extents


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
