"""One forward pass of the decoder through a film, taking two short cuts on its way to the wanted frames.

Packets before the last keyframe that lies ahead are not decoded, nor are the pictures shown before that keyframe but
stored behind it, which would need them; and frames that no other needs are left out unless they are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import av
import numpy as np

from tokenmill.pipelines import film_checks as checks
from tokenmill.pipelines.film_index import FilmIndex

# Codecs whose keyframes begin a decode of the very same frames, and whose unneeded frames are no loss: as tested.
_STARTS_AT_KEYS = frozenset(
    ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "vp8", "vp9", "av1", "mjpeg", "prores")
)
_LEAVES_OUT = frozenset(("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"))
ALL_SHORT_CUTS = frozenset(("jump", "leave out"))
_DEEPEST_REORDERING = 17  # H.264 and HEVC hold back 16 frames at most


class FilmPass:
    """Decodes a freshly opened stream; a frame is asked for by the tick at which it is shown, ascending.

    Args:
        counts: `decoded` grows with every frame that comes out of the decoder.
        short_cuts: those that may be taken, of `ALL_SHORT_CUTS`.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        index: FilmIndex,
        counts: Counter[str],
        *,
        short_cuts: frozenset[str],
        is_cut_off: bool,
    ) -> None:
        self._context, self._index, self._counts = stream.codec_context, index, counts
        self._packets = (packet for packet in container.demux(stream) if packet.size)
        self._position = 0  # number of the next packet
        self._is_cut_off = is_cut_off
        self._ahead: dict[int, Any] = {}  # came out, and may be wanted
        self._inside: set[int] = set()  # went in, and will come out
        self._floor = index.first_tick
        self._came_out = 0
        self._is_over = False
        name = self._context.codec.canonical_name
        self._may_jump = "jump" in short_cuts and name in _STARTS_AT_KEYS and not index.is_counted
        self._may_leave_out = "leave out" in short_cuts and name in _LEAVES_OUT and not index.is_counted
        self.left_out = 0  # packets

    def can_give(self, numbers: Collection[int]) -> bool:
        """Tell whether these frames are still to come."""
        if self._index.is_counted:
            return all(number >= self._came_out or number in self._ahead for number in numbers)
        order, packet_of = self._index.order, self._index.packet_of
        return all(
            packet_of[number] >= self._position or (tick := int(order[number])) in self._ahead or tick in self._inside
            for number in numbers
        )

    def first_decoded(self, numbers: Sequence[int]) -> int:
        """Return the number of the frame, about, from which on has to be decoded for these, at the earliest."""
        if self._may_jump:
            _, tick = self._index.key_before(numbers[0])
            return int(np.searchsorted(self._index.order, tick))
        return min(self._came_out, numbers[0]) if self.can_give(numbers) else 0

    def frame(self, number: int, wanted: Collection[int], last: int) -> Any:
        """Decode up to a frame and return it; `wanted` are the ticks of this and all to be asked for up to `last`."""
        tick = int(self._index.order[number])
        if tick not in self._ahead and tick not in self._inside and self._may_jump:
            self._jump(number)
        late = 0
        while tick not in self._ahead and not self._is_over and late < _DEEPEST_REORDERING:
            late += sum(came > tick for came in self._advance(wanted, last))
        if tick not in self._ahead:
            message = f"fewer frames than the {self._index.num_frames} it should have"
            raise checks.miscounted(message, self._is_cut_off)
        self._ahead = {other: frame for other, frame in self._ahead.items() if other >= tick}
        return self._ahead.pop(tick)

    def _jump(self, number: int) -> None:
        """Go to the last keyframe from which a frame can be decoded, if that is ahead."""
        packet, tick = self._index.key_before(number)
        if packet <= self._position:
            return
        while self._position < packet:
            self._next()
        self._context.flush_buffers()
        self._inside.clear()
        self._floor = tick

    def _advance(self, wanted: Collection[int], last: int) -> list[int]:
        """Give one packet to the decoder; returns the ticks of the frames that come out."""
        position, packet = self._position, self._next()
        if packet is None:
            self._is_over = True
            return self._take(None, wanted, last)
        if not self._index.is_fed[position]:
            return []
        if self._index.is_counted or not self._index.is_frame[position]:
            return self._take(packet, wanted, last)
        tick = int(self._index.pts[position])
        if tick < self._floor:
            return []
        skips = self._may_leave_out and tick < last and tick not in wanted
        self._context.skip_frame = "NONREF" if skips else "DEFAULT"
        if skips:
            self.left_out += 1
        else:
            self._inside.add(tick)
        return self._take(packet, wanted, last)

    def _next(self) -> Any:
        """Read a packet; None at the end."""
        try:
            packet = next(self._packets, None)
        except av.error.FFmpegError as error:
            raise self._fault(error) from error
        self._position += 1
        return packet

    def _take(self, packet: Any, wanted: Collection[int], last: int) -> list[int]:
        """Decode a packet (None: what is left) and keep what is wanted, or may be next time."""
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            raise self._fault(error) from error
        came = []
        for frame in frames:
            if frame.is_corrupt:
                raise checks.undecodable(self._is_cut_off)
            tick = self._came_out if self._index.is_counted else frame.pts
            self._came_out += 1
            self._inside.discard(tick)
            if tick is not None:
                came.append(tick)
                if tick in wanted or tick > last:
                    self._ahead[tick] = frame
        self._counts["decoded"] += len(frames)
        return came

    def _fault(self, error: Exception) -> Exception:
        if isinstance(error, MemoryError):
            return MemoryError("no room to decode a frame")
        return checks.undecodable(self._is_cut_off)
