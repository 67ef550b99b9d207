"""Open a video file, choose its stream and say what is wrong with it, before anything is decoded.

Only container formats that hold their own frames are tried: a playlist named .mp4 must not make FFmpeg open other
files or addresses. FFmpeg's own words carry times and addresses, so faults get fixed ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from tokenmill.errors import RunError, SampleError

_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MP4_BOXES = (
    *_MP4_FIRST_BOXES,
    b"moof",
    b"mfra",
    b"styp",
    b"sidx",
    b"emsg",
    b"meta",
    b"uuid",
    b"udta",
    b"prft",
    b"pnot",
)
_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,h264,hevc,vvc,m4v,mpegvideo,obu,ivf,mxf,mxf_opatom,wtv,rm,nut,gxf,"
    "dv,yuv4mpegpipe,mjpeg,vc1,av1,h263,live_flv,nsv,smk,bink,swf,ea,roq,wv,cavsvideo,dirac,gif"
)
_WIDEST_PIXEL = 16  # a sample aspect ratio beyond it, either way, is noise in a header


def open_container(path: str, *, is_cut_off: bool, hwaccel: str | None = None, **options: str) -> Any:
    """Open a file of a known format; raises SampleError `not_a_video` or `truncated`, RunError for a missing device."""
    from av.codec.hwaccel import HWAccel

    device = HWAccel(device_type=hwaccel, allow_software_fallback=True) if hwaccel else None
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"} | options
    try:
        return av.open(path, options=options, hwaccel=device, metadata_errors="replace")
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise MemoryError("no room to open the file") from error
        raise unreadable(is_cut_off) from error


def check_device(hwaccel: str) -> None:
    """Raise RunError where FFmpeg cannot use a device of this kind on this machine."""
    from av.codec.hwaccel import HWAccel, hwdevices_available

    if hwaccel not in hwdevices_available():
        raise RunError(f"video_hwaccel: this build of PyAV knows no {hwaccel}; it knows {hwdevices_available()}")
    try:
        HWAccel(device_type=hwaccel).create(av.codec.Codec("h264", "r"))
    except Exception as error:
        raise RunError(f"video_hwaccel: no {hwaccel} device can be opened on this machine") from error


def best_stream(container: Any) -> Any:
    """Return FFmpeg's choice of the video streams; a cover picture is none, and no packet of the others is read."""
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    stream = best if best in videos else next(iter(videos), None)
    if stream is None or stream.codec_context is None:
        raise SampleError("not_a_video", "no video stream")
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise SampleError where one frame is too large."""
    if width * height > max_pixels:
        raise SampleError("too_many_pixels", f"frames of {width} x {height} are more than {max_pixels} pixels")


def pixel_aspect(stream: Any) -> float:
    """Return how much wider than high a pixel is shown; 1 where the header says nothing sensible."""
    ratio = stream.sample_aspect_ratio
    aspect = float(ratio) if ratio else 1.0
    return aspect if 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL else 1.0


def is_cut_off(path: str) -> bool:
    """Tell whether an MP4's or MOV's last box announces more bytes than there are; False for other containers."""
    with Path(path).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        position = file.seek(0)
        while position < end:
            head = file.read(16)
            if position == 0 and head[4:8] not in _MP4_FIRST_BOXES:
                return False
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if size < 8:  # 0 means up to the end of the file; anything else is no box
                return False
            if position + size > end:
                return head[4:8] in _MP4_BOXES  # else it is no box: something was put behind the film
            position = file.seek(position + size)
        return False


def unreadable(is_cut_off: bool) -> SampleError:
    """Say that a file cannot be opened."""
    if is_cut_off:
        return SampleError("truncated", "the file ends inside its header or index")
    return SampleError("not_a_video", "no container with a decodable video stream")


def undecodable(is_cut_off: bool) -> SampleError:
    """Say that a frame cannot be decoded."""
    if is_cut_off:
        return SampleError("truncated", "the file ends inside a frame")
    return SampleError("corrupt", "a frame can't be decoded")


def miscounted(message: str, is_cut_off: bool) -> SampleError:
    """Say that a file holds other frames than it should."""
    return SampleError("truncated" if is_cut_off else "wrong_frame_count", message)
