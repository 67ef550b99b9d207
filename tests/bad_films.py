"""Films as they come from the wild: every kind of bad one, under its name, with where and why it is lost."""

from __future__ import annotations

from pathlib import Path

from tests.films import ffmpeg

# name → the stage and the reason that it is lost for
REASONS = {
    "truncated.mp4": ("split", "truncated"),
    "no-moov.mp4": ("split", "not_a_video"),
    "no-frames.mp4": ("split", "no_frames"),
    "text.mp4": ("split", "not_a_video"),
    "hangs.mp4": ("split", "timeout"),
    "aborts.mp4": ("split", "decoder_crash"),
    "lies.avi": ("split", "wrong_frame_count"),
    "one-pixel.mp4": ("select", "resolution"),
    "8k.mp4": ("split", "too_many_pixels"),
    "no-video.mp4": ("split", "not_a_video"),
}
FAULTS = "decode:hangs.mp4=hang,decode:aborts.mp4=SIGABRT"
"""What makes two of them hang and abort the decoder: to be set as TOKENMILL_FAULT."""

MAX_PIXELS = 1 << 24


def write_bad_films(folder: Path, good: Path) -> None:
    """Write one of every kind; `good` is a clip that is none of them."""
    data = good.read_bytes()
    for name in ("hangs.mp4", "aborts.mp4"):
        (folder / name).write_bytes(data)
    (folder / "text.mp4").write_text("this is no film\n" * 50)
    (folder / "no-moov.mp4").write_bytes(data[: data.rfind(b"moov") - 4])
    first = folder / "truncated.mp4"
    ffmpeg("-i", good, "-c", "copy", "-movflags", "+faststart", first)
    first.write_bytes(first.read_bytes()[: -len(data) // 4])
    _without_frames(folder / "no-frames.mp4", good)
    _lying(folder / "lies.avi", good)
    tiny = ("-vf", "scale=1:1", "-pix_fmt", "yuv444p")
    ffmpeg("-i", good, *tiny, folder / "one-pixel.mp4")
    large = ("-vf", "scale=7680:4320:flags=neighbor", "-frames:v", "1", "-preset", "ultrafast")
    ffmpeg("-i", good, *large, folder / "8k.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", folder / "no-video.mp4")


def _without_frames(path: Path, good: Path) -> None:
    """Write a track that announces itself and holds nothing."""
    ffmpeg("-i", good, "-c", "copy", "-movflags", "frag_keyframe+empty_moov", path)
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"moof") - 4])


def _lying(path: Path, good: Path) -> None:
    ffmpeg("-i", good, "-c:v", "mpeg4", path)
    data = bytearray(path.read_bytes())
    length = data.find(b"strh") + 40
    frames = int.from_bytes(data[length : length + 4], "little")
    data[length : length + 4] = (frames + 30).to_bytes(4, "little")
    path.write_bytes(data)
