"""Whether an H.264 picture may begin a decode: containers call recovery points keyframes, but only IDR pictures may.

Behind a mere recovery point (an open group of pictures, intra refresh) pictures may need what came before it, and
FFmpeg reports their reference marking as an error.
"""

from __future__ import annotations

from collections.abc import Iterator

_START_CODE = b"\x00\x00\x01"
_SLICE, _IDR_SLICE = 1, 5


def length_bytes(extradata: bytes | None) -> int:
    """Return how many bytes tell a unit's length; 0 where units stand behind start codes (ITU-T H.264 annex B)."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def is_idr(packet: bytes, num_length_bytes: int) -> bool:
    """Tell whether the first slice of an H.264 packet belongs to an IDR picture."""
    types = _lengths(packet, num_length_bytes) if num_length_bytes else _start_codes(packet)
    return next((kind for kind in types if kind in (_SLICE, _IDR_SLICE)), _SLICE) == _IDR_SLICE


def _lengths(packet: bytes, num_length_bytes: int) -> Iterator[int]:
    position = 0
    while position + num_length_bytes < len(packet):
        head = position + num_length_bytes
        yield packet[head] & 31
        position = head + int.from_bytes(packet[position:head], "big")


def _start_codes(packet: bytes) -> Iterator[int]:
    position = packet.find(_START_CODE)
    while 0 <= position < len(packet) - len(_START_CODE):
        yield packet[position + len(_START_CODE)] & 31
        position = packet.find(_START_CODE, position + len(_START_CODE))
