"""How long a film is, from a few hundred bytes of it: MP4's and MOV's own header, found by hopping over the boxes.

ISO/IEC 14496-12: a file is boxes (size, type, content); `moov` holds `mvhd` with a time scale and a duration. A
128 MiB film with the header at its end costs two or three ranged reads. Nothing is believed: what does not fit into the
file or repeats without end is "no duration".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Read = Callable[[int, int], bytes]  # start, length

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MOST_BOXES = 256
_WINDOW_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    start: int  # of its content
    end: int


def mp4_seconds(read: Read, size: int) -> float | None:
    """Return the announced duration of an MP4 or MOV of `size` bytes; None where it is none or does not say."""
    window = _Window(read, size)
    if window.bytes(4, 4) not in _FIRST_BOXES:
        return None
    moov = _first(window, 0, size, b"moov")
    if moov is None:
        return None
    header = _first(window, moov.start, moov.end, b"mvhd")
    seconds = None if header is None else _duration(window, header, scale_at=(12, 20), duration_at=(16, 24))
    if header is None or seconds:
        return seconds
    extends = _first(window, moov.start, moov.end, b"mvex")  # fragmented: the whole's duration may stand here
    whole = None if extends is None else _first(window, extends.start, extends.end, b"mehd")
    if whole is None:
        return None
    scale = _number(window, header, (12, 20), 4, 4)
    units = _number(window, whole, (4, 4), 4, 8)
    return units / scale if scale and units else None


class _Window:
    """Reads a little ahead: most boxes are read with the one before."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size = read, size
        self._start, self._data = 0, b""

    def bytes(self, start: int, length: int) -> bytes:
        """Return the bytes there; fewer where the file ends."""
        length = min(length, self._size - start)
        if length <= 0:
            return b""
        if not self._start <= start <= start + length <= self._start + len(self._data):
            ahead = min(max(length, _WINDOW_BYTES), self._size - start)
            self._start, self._data = start, self._read(start, ahead)
        return self._data[start - self._start : start - self._start + length]


def _boxes(window: _Window, start: int, end: int) -> Iterator[_Box]:
    for _ in range(_MOST_BOXES):
        head = window.bytes(start, 16)
        if len(head) < 8 or start + 8 > end:
            return
        size, content = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, content = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:  # up to the end
            size = end - start
        if size < content:
            return
        yield _Box(head[4:8], start + content, min(start + size, end))
        start += size


def _first(window: _Window, start: int, end: int, kind: bytes) -> _Box | None:
    return next((box for box in _boxes(window, start, end) if box.kind == kind), None)


def _duration(window: _Window, box: _Box, *, scale_at: tuple[int, int], duration_at: tuple[int, int]) -> float | None:
    scale = _number(window, box, scale_at, 4, 4)
    units = _number(window, box, duration_at, 4, 8)
    unknown = units in (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
    return units / scale if scale and units and not unknown else None


def _number(window: _Window, box: _Box, offsets: tuple[int, int], short: int, long: int) -> int:
    """Read a field that lies and is as wide as the box's version says; 0 where the box is too short."""
    version = window.bytes(box.start, 1)
    is_long = version == b"\x01"
    offset, width = offsets[is_long], (long if is_long else short)
    if box.start + offset + width > box.end:
        return 0
    return int.from_bytes(window.bytes(box.start + offset, width), "big")
