"""A JSON file that is one array of objects, read in ranges of its elements: LLaVA's files have gigabytes.

Where elements begin is found once, by looking at quotes, brackets and commas alone (0.15 GB/s a core); a range is then
read and parsed by itself. An element that is no JSON costs that element, unless its brackets do not match.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError

_CHUNK_BYTES = 2**18
_LONGEST_ELEMENT = 64 * 2**20
_BACKSLASH, _QUOTE, _COMMA = b'\\",'
_STEP = np.zeros(256, np.int64)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_TOLD = _STEP != 0
_TOLD[[_BACKSLASH, _QUOTE, _COMMA]] = True
_BLANK = b" \t\r\n\xef\xbb\xbf"
Range = tuple[int, int]


class _Scanner:
    """Finds the commas between an array's elements, and its end; `depth` is 1 between elements."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._in_string = self._escapes = False

    def feed(self, data: bytes) -> tuple[NDArray[np.int64], int | None]:
        """Return where commas between elements stand in the next piece of a file, and where the array ends."""
        codes = np.frombuffer(data, np.uint8)
        places = np.flatnonzero(_TOLD[codes])
        kinds = codes[places]
        quotes = (kinds == _QUOTE) & ~self._escaped(places[kinds == _BACKSLASH], len(data))[places]
        inside = (np.cumsum(quotes) + self._in_string) & 1
        counts = (inside == 0) & ~quotes & (kinds != _BACKSLASH)
        places, kinds = places[counts], kinds[counts]
        depths = self._depth + np.cumsum(_STEP[kinds])
        if len(inside):
            self._in_string = bool(inside[-1])
        ends = np.flatnonzero(depths <= 0)
        end = int(places[ends[0]]) if len(ends) else None
        self._depth = int(depths[-1]) if len(depths) else self._depth
        commas = places[(kinds == _COMMA) & (depths == 1)]
        return (commas if end is None else commas[commas < end]), end

    def _escaped(self, backslashes: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
        """Mark the bytes that a backslash before them escapes: every second one of a run of backslashes does."""
        marks = np.zeros(length + 1, np.bool_)
        marks[0] = self._escapes
        begins = np.diff(backslashes, prepend=-2) > 1
        starts = np.maximum.accumulate(np.where(begins, backslashes, 0))
        shifted = (starts == 0) & self._escapes  # the first byte is itself escaped
        marks[backslashes[(backslashes - starts + shifted) % 2 == 0] + 1] = True
        self._escapes = bool(marks[length])
        return marks


def element_ranges(stream: IO[bytes], elements: int, name: str) -> tuple[list[Range], bool]:
    """Return the byte ranges of so many elements each, and whether the array ends as it should.

    A file that is one object is one range. Raises RunError naming the file where it is neither, or something follows.
    """
    head = stream.read(_CHUNK_BYTES)
    first = len(head) - len(head.lstrip(_BLANK))
    if head[first : first + 1] == b"{":
        return [(first, stream.seek(0, 2))], True
    if head[first : first + 1] != b"[":
        raise RunError(f"{name}: neither an array of objects nor an object")
    scanner, ranges = _Scanner(1), list[Range]()
    start = last = offset = first + 1
    seen, data = 0, head[first + 1 :] or stream.read(_CHUNK_BYTES)
    while data:
        commas, end = scanner.feed(data)
        for comma in commas.tolist():
            last, seen = offset + comma + 1, seen + 1
            if seen % elements == 0:
                ranges.append((start, last - 1))
                start = last
        if end is not None:
            _check_rest(data[end + 1 :], stream, name)
            return [*ranges, (start, offset + end)], True
        offset += len(data)
        if offset - last > 2 * _LONGEST_ELEMENT:
            raise RunError(f"{name}: what begins at byte {last} of the array does not end; is its JSON damaged?")
        data = stream.read(_CHUNK_BYTES)
    return [*ranges, (start, offset)], False


def _check_rest(rest: bytes, stream: IO[bytes], name: str) -> None:
    while rest:
        if rest.strip(_BLANK):
            raise RunError(f"{name}: something follows the array; is its JSON damaged?")
        rest = stream.read(_CHUNK_BYTES)


def elements_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of every element of a range."""
    commas, _ = _Scanner(1).feed(data)
    start = 0
    for end in (*commas.tolist(), len(data)):
        element = data[start:end]
        if element.strip(_BLANK):
            yield start + len(element) - len(element.lstrip(_BLANK)), element.strip(_BLANK)
        start = end + 1
