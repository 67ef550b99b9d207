"""Read one video file strictly forward with PyAV, decoding no more than the wanted frames need.

Two short cuts (`film_pass.py`) give the very frames of a plain decode: at 2 frames a second of x264's default settings
for 0.7 of the cost. The container is never asked to seek,
for its index is the part of a file that is wrong most often. Runs in the child process of `decode_video.py` only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import av

from tokenmill.errors import SampleError
from tokenmill.pipelines import film_checks as checks
from tokenmill.pipelines.film_index import FilmIndex, Packets, read_packets
from tokenmill.pipelines.film_pass import ALL_SHORT_CUTS, FilmPass
from tokenmill.pipelines.film_picture import Frame, display_of, is_hdr, picture

_LONGEST_FRAME_S = 1.0


class Film:
    """One opened file: `index` says which frames there are and when; `height_px` and `width_px` as seen.

    Raises SampleError: `not_a_video`, `truncated`, `no_frames`, `absurd_times`, `wrong_frame_count`, `corrupt`,
    `too_many_pixels`.
    """

    def __init__(self, path: str, *, max_pixels: int, hwaccel: str | None = None) -> None:
        self._path, self._max_pixels, self._hwaccel = path, max_pixels, hwaccel
        self._is_cut_off = checks.is_cut_off(path)
        self.short_cuts = ALL_SHORT_CUTS
        self._container: Any = None  # PyAV's types do not know that `best` may return any stream
        self._stream: Any = None
        self.counts: Counter[str] = Counter()
        self.block_bytes = 0  # of the largest allocation that a frame needs, about

    def open(self) -> Film:
        """Read the table of packets and the first frame; of no use before."""
        self.index = self._indexed()
        self._pass = self._started()
        self._first = self._decoded(0, (self.index.first_tick,), self.index.first_tick)
        self._display = display_of(self._first, checks.pixel_aspect(self._stream))
        self.height_px, self.width_px = self._display.upright
        checks.check_size(self.width_px, self.height_px, self._max_pixels)
        return self

    def facts(self) -> dict[str, Any]:
        """Return what `VideoInfo` holds."""
        index, first, context = self.index, self._first, self._stream.codec_context
        return {
            "num_frames": index.num_frames,
            "fps": index.fps,
            "width_px": self.width_px,
            "height_px": self.height_px,
            "seconds": float(index.times[-1]),
            "reader": f"av:{self._hwaccel}" if context.is_hwaccel else "av",
            "codec": context.codec.canonical_name,
            "pixel_format": context.pix_fmt or first.format.name,
            "has_audio": bool(self._container.streams.audio),
            "is_interlaced": bool(first.interlaced_frame),
            "is_variable_rate": index.is_variable_rate,
            "is_hdr": is_hdr(first),
        }

    @property
    def turns(self) -> int:
        """Quarter turns between a frame as it is stored and as it is seen."""
        return self._display.turns

    def close(self) -> None:
        """Give the file back."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, numbers: Sequence[int], height: int, width: int) -> Iterator[Frame]:
        """Yield frames by ascending number as RGB pictures of a size."""
        wanted = frozenset(int(self.index.order[number]) for number in numbers)
        last = max(wanted, default=0)
        rest = [number for number in numbers if number]
        if not self._pass.can_give(rest):
            self._pass = self._started()
        for number in numbers:
            frame = self._decoded(number, wanted, last) if number else self._first
            self.counts["converted"] += 1
            yield picture(frame, self._display, height, width)

    def seconds_to_decode(self, numbers: Sequence[int]) -> float:
        """Return how many seconds of film have to be decoded for these frames, at most; a pause is no work."""
        if not len(numbers):
            return 0.0
        first, end = self._pass.first_decoded(numbers), numbers[-1] + 1
        times = self.index.times
        return min(float(times[end] - times[first]), _LONGEST_FRAME_S * (end - first))

    def _decoded(self, number: int, wanted: Collection[int], last: int) -> Any:
        while True:
            try:
                return self._pass.frame(number, wanted, last)
            except SampleError:
                if not self._pass.left_out:
                    raise
            # Damage, most likely; but a film that is sound when all is decoded shall not fail for what was left out.
            self.short_cuts -= {"leave out"}
            self._pass = self._started()

    def _indexed(self) -> FilmIndex:
        packets = self._packets()
        announced = self._stream.frames
        if self._is_cut_off and not announced:  # fragments, of which nobody knows how many there should be
            raise checks.miscounted("the file ends inside a fragment", self._is_cut_off)
        if announced not in (0, packets.number):
            # An edit list leaves packets out of what the header counts.
            everything = self._packets(ignore_editlist="1").number
            if everything != announced:
                message = f"the header announces {announced} frames, the file holds {everything}"
                raise checks.miscounted(message, self._is_cut_off)
        packets.index.check()
        return packets.index

    def _packets(self, **options: str) -> Packets:
        self._open(**options)
        try:
            return read_packets(self._container, self._stream)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise MemoryError("no room to read packets") from error
            raise checks.undecodable(self._is_cut_off) from error

    def _started(self) -> FilmPass:
        self._open()
        context = self._stream.codec_context
        context.thread_count = 1
        context.options = {"max_pixels": str(self._max_pixels)}
        if self.index.starts_whole:  # else the first frames name others that are not there
            context.options |= {"err_detect": "explode"}
        return FilmPass(
            self._container,
            self._stream,
            self.index,
            self.counts,
            short_cuts=self.short_cuts,
            is_cut_off=self._is_cut_off,
        )

    def _open(self, **options: str) -> None:
        self.close()
        self._container = checks.open_container(
            self._path, is_cut_off=self._is_cut_off, hwaccel=self._hwaccel, **options
        )
        self._stream = checks.best_stream(self._container)
        context = self._stream.codec_context
        checks.check_size(context.width, context.height, self._max_pixels)
        self.block_bytes = context.width * context.height * 8
