"""Films for tests, made by ffmpeg once a session: one with shots, fades and black, and two hundred small clips."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments: object) -> None:
    """Run ffmpeg, overwriting."""
    subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, arguments)], check=True)


def shots(
    path: Path, seconds: Sequence[float], *, fps: int = 10, fade_s: float = 0, options: Sequence[str] = ()
) -> Path:
    """Write a film of shots so many seconds long, each of another colour and pattern; a negative one is black.

    With `fade_s`, every other shot fades to black in that time.
    """
    inputs, chains = [], []
    for number, length in enumerate(seconds):
        hue = number * 67 % 360
        pattern = f"testsrc2=s=64x48:r={fps}:d={abs(length)},hue=h={hue}:b={number % 3 - 1}"
        if number % 2 and length > fade_s > 0:
            pattern += f",fade=out:d={fade_s}:st={length - fade_s}"
        chains.append(f"color=black:s=64x48:r={fps}:d={-length}" if length < 0 else pattern)
        inputs.append(f"[v{number}]")
    graph = ";".join(f"{chain},format=yuv420p,setsar=1{name}" for chain, name in zip(chains, inputs, strict=True))
    ffmpeg("-filter_complex", f"{graph};{''.join(inputs)}concat=n={len(inputs)}[out]", "-map", "[out]", *options, path)
    return path


def segments(folder: Path, count: int, *, seconds: float = 1.0, fps: int = 8, size: int = 64) -> list[Path]:
    """Write `count` small clips of so many seconds, by cutting one film."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"testsrc2=s={size}x{size}:r={fps}:d={count * seconds}"
    keyframes = ("-g", str(round(fps * seconds)), "-sc_threshold", "0", "-pix_fmt", "yuv420p", "-preset", "ultrafast")
    cut = ("-f", "segment", "-segment_time", str(seconds), "-reset_timestamps", "1")
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", *keyframes, *cut, folder / "%05d.mp4")
    found = sorted(folder.glob("*.mp4"))
    assert len(found) == count
    return found
