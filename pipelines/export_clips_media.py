"""Packets and frames of one clip into an mp4 file; runs in the child process of `export_clips.py` only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from tokenmill.errors import SampleError
from tokenmill.pipelines.film import Film
from tokenmill.pipelines.film_checks import open_container, pixel_aspect

_VIDEO_IN_MP4 = ("h264", "hevc", "av1", "vp9", "mpeg4")
_AUDIO_IN_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_TICKS_PER_S = 90_000
_LATE_S = 2.0  # how far behind a moment's pictures its sound may stand in a file


@dataclass(frozen=True, slots=True)
class ClipPlace:
    """Frames [start, end) of an open film that lies at `path`."""

    path: str
    film: Film
    start: int
    end: int

    @property
    def packets(self) -> tuple[int, int] | None:
        """The numbers of the clip's packets, from one on and up to another, if they are self-contained."""
        index = self.film.index
        if index.is_counted:
            return None
        last = len(index.pts)
        first, behind = int(index.packet_of[self.start]), last
        if self.end < index.num_frames:
            behind = int(index.packet_of[self.end])
            if not index.is_key[behind]:
                return None
        inside = slice(first, behind)
        shown = np.sort(index.pts[inside])
        whole = np.array_equal(shown, index.order[self.start : self.end]) and index.is_frame[inside].all()
        return (first, behind) if whole and index.is_key[first] else None

    @property
    def span_s(self) -> tuple[float, float]:
        """When the clip begins and ends on the file's own clock."""
        index = self.film.index
        origin = 0.0 if index.is_counted else index.first_tick * index.tick_s
        return origin + float(index.times[self.start]), origin + float(index.times[self.end])


def copied(place: ClipPlace, to: str) -> bool:
    """Copy a clip's packets; False where it has to be encoded."""
    packets = place.packets
    if packets is None:
        return False
    with closing(_opened(place.path)) as source:
        stream = _video(source)
        context = stream.codec_context
        upright = (place.film.height_px, place.film.width_px) == (context.height, context.width)
        is_plain = upright and pixel_aspect(stream) == 1 and place.film.turns == 0
        if not is_plain or context.codec.canonical_name not in _VIDEO_IN_MP4:
            return False
        wanted = place.film.index.pts[slice(*packets)]
        found = _from_key(source, stream, wanted)
        if found is None:
            return False
        with _written(to) as target:
            out = target.add_stream_from_template(stream)
            _mux(target, [*_shifted(found, out, place.span_s[0]), *_audio(place, target)])
    return True


def encoded(place: ClipPlace, to: str) -> None:
    """Decode a clip and encode it as H.264, its sides cropped to even numbers, at the times of its frames."""
    index, film = place.film.index, place.film
    height, width = film.height_px - film.height_px % 2, film.width_px - film.width_px % 2
    if min(height, width) < 2:
        raise SampleError("too_small", "H.264 needs two pixels either way")
    times = index.times[place.start : place.end] - index.times[place.start]
    with _written(to) as target:
        out = target.add_stream("libx264", rate=Fraction(index.fps).limit_denominator(1001 * 120))
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        out.options = {"crf": "18", "preset": "veryfast"}
        out.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        packets: list[Any] = []
        pictures = film.read(range(place.start, place.end), film.height_px, film.width_px)
        for picture, seconds in zip(pictures, times, strict=True):
            shape = np.ascontiguousarray(picture[:height, :width])
            frame = av.VideoFrame.from_ndarray(shape, format="rgb24")
            frame.pts, frame.time_base = round(seconds * _TICKS_PER_S), Fraction(1, _TICKS_PER_S)
            packets += out.encode(frame)
        packets += out.encode(None)
        _mux(target, [*packets, *_audio(place, target)])


def _from_key(source: Any, stream: Any, wanted: Any) -> list[Any] | None:
    """Return the packets of these times; a container's index may be wrong, so it is tried and then done without."""
    for seek_to in (int(wanted[0]), None):
        if seek_to is not None:
            try:
                source.seek(seek_to, stream=stream)
            except av.error.FFmpegError:
                continue
        else:
            source.seek(0)
        found = _run_of(source.demux(stream), wanted)
        if found is not None:
            return found
    return None


def _run_of(packets: Iterator[Any], wanted: Any) -> list[Any] | None:
    found: list[Any] = []
    for packet in packets:
        if packet.size == 0:
            continue
        if found or (packet.pts == wanted[0] and packet.is_keyframe):
            if packet.pts != wanted[len(found)]:
                return None
            found.append(packet)
            if len(found) == len(wanted):
                return found
        elif packet.pts is not None and packet.pts > wanted.max():
            return None
    return None


def _shifted(packets: list[Any], out: Any, begin_s: float) -> list[Any]:
    """Make a clip's packets begin at 0, on the stream they go to."""
    for packet in packets:
        shift = round(begin_s / float(packet.time_base))
        packet.pts -= shift
        packet.dts = packet.pts if packet.dts is None else packet.dts - shift
        packet.stream = out
    return packets


def _audio(place: ClipPlace, target: Any) -> list[Any]:
    """Return the clip's sound as packets of a stream of `target`; none where there is no audio."""
    begin_s, end_s = place.span_s
    with closing(_opened(place.path)) as source:
        if not source.streams.audio:
            return []
        stream = source.streams.audio[0]
        if stream.codec_context is None:
            return []
        found = _between(source, stream, begin_s, end_s)
        if not found:
            return []
        if stream.codec_context.codec.canonical_name in _AUDIO_IN_MP4:
            return _shifted(found, target.add_stream_from_template(stream), begin_s)
        return _as_aac(found, stream, target, begin_s)


def _between(source: Any, stream: Any, begin_s: float, end_s: float) -> list[Any]:
    tick_s = float(stream.time_base)
    try:
        source.seek(max(0, int((begin_s - _LATE_S) / tick_s)), stream=stream)
    except av.error.FFmpegError:
        source.seek(0)
    found = []
    for packet in source.demux(stream):
        if packet.size == 0 or packet.pts is None:
            continue
        if packet.pts * tick_s >= end_s:
            break
        if packet.pts * tick_s >= begin_s:
            found.append(packet)
    return found


def _as_aac(packets: list[Any], stream: Any, target: Any, begin_s: float) -> list[Any]:
    rate = stream.codec_context.sample_rate
    out = target.add_stream("aac", rate=rate)
    out.layout = "mono" if stream.codec_context.layout.nb_channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=out.layout, rate=rate)
    made: list[Any] = []
    for packet in packets:
        for frame in packet.decode():
            frame.pts -= round(begin_s / float(frame.time_base))
            for piece in resampler.resample(frame):
                made += out.encode(piece)
    for piece in resampler.resample(None):
        made += out.encode(piece)
    made += out.encode(None)
    return made


def _mux(target: Any, packets: list[Any]) -> None:
    """Write packets in the order of their times: pictures and sound beside each other."""
    for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
        target.mux(packet)


def _opened(path: str) -> Any:
    return open_container(path, is_cut_off=False)


def _video(source: Any) -> Any:
    return source.streams.best("video")


def _written(to: str) -> Any:
    return av.open(to, "w", format="mp4", options={"movflags": "+faststart"})
