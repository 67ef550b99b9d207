"""Does decord (the maintained build, `decord2`) decode the demo's clips as PyAV does, and how much faster is it?

    python benchmarks/decoders.py [--json] [--folder CLIPS]

Compares number of frames and pixels of every clip that PyAV decodes, times both on one thread (best of three), and
finds the frame widths at which decord gives more than three channels. Without --folder the clips are assembled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
from numpy.typing import NDArray

from tokenmill.demo.clip_folder import NUM_MOTIONS, encode_mp4, write_clips

Frames = NDArray[np.uint8]
WIDTHS = range(16, 258, 2)
REPEATS = 3


def read_with_pyav(path: Path) -> Frames:
    """Decode a whole clip: THWC."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = np.empty((stream.frames, stream.height, stream.width, 3), dtype=np.uint8)
        number = 0
        for number, frame in enumerate(container.decode(stream), 1):
            frames[number - 1] = frame.to_ndarray(format="rgb24")
        return frames[:number]


def read_with_decord(path: Path) -> Frames:
    """Decode a whole clip: THWC."""
    reader = decord.VideoReader(str(path), num_threads=1)
    frames: Frames = reader.get_batch(range(len(reader))).asnumpy()
    return frames


def compare(path: Path) -> dict[str, Any]:
    """Compare frames and seconds of both readers for one clip."""
    pyav_s, ours = _best(read_with_pyav, path)
    decord_s, theirs = _best(read_with_decord, path)
    same_shape = ours.shape == theirs.shape
    difference = np.abs(ours.astype(np.int16) - theirs) if same_shape else None
    return {
        "clip": path.name,
        "frames_pyav": len(ours),
        "frames_decord": len(theirs),
        "size_px": [ours.shape[2], ours.shape[1]],
        "max_difference": None if difference is None else int(difference.max()),
        "mean_difference": None if difference is None else round(float(difference.mean()), 4),
        "pyav_s": round(pyav_s, 4),
        "decord_s": round(decord_s, 4),
    }


def broken(path: Path) -> dict[str, Any]:
    """Say what each reader makes of a clip that is spoiled."""
    return {"clip": path.name, "pyav": _outcome(read_with_pyav, path), "decord": _outcome(read_with_decord, path)}


def wrong_widths(widths: Iterable[int], folder: Path) -> list[int]:
    """List the widths at which a frame of decord has another shape than height, width, 3."""
    wrong = []
    for width in widths:
        path = folder / "width.mp4"
        encode_mp4(path, np.full((2, 32, width, 3), 90, dtype=np.uint8), 12)
        if decord.VideoReader(str(path), num_threads=1)[0].shape != (32, width, 3):
            wrong.append(width)
    return wrong


def measure(folder: Path, widths: Iterable[int] = WIDTHS) -> dict[str, Any]:
    """Measure all clips below `folder`; those in its `web` are spoiled."""
    clips = [compare(path) for path in sorted(folder.rglob("*.mp4")) if path.parent.name != "web"]
    with tempfile.TemporaryDirectory() as scratch:
        return {
            "pyav": av.__version__,
            "decord": decord.__version__,
            "clips": clips,
            "spoiled": [broken(path) for path in sorted((folder / "web").glob("*.mp4"))],
            "wrong_widths_px": wrong_widths(widths, Path(scratch)),
            "pyav_s": round(sum(clip["pyav_s"] for clip in clips), 3),
            "decord_s": round(sum(clip["decord_s"] for clip in clips), 3),
        }


def _best(read: Callable[[Path], Frames], path: Path) -> tuple[float, Frames]:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        frames = read(path)
        seconds.append(time.perf_counter() - start)
    return min(seconds), frames


def _outcome(read: Callable[[Path], Frames], path: Path) -> str:
    """Decode and name the outcome; every kind of error is an answer here."""
    try:
        return f"{len(read(path))} frames"
    except Exception as error:
        return type(error).__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="clips to compare (default: the demo's)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if options.folder is None:
            write_clips(folder, range(NUM_MOTIONS))
        result = measure(folder)
    print(json.dumps(result, indent=1) if options.json else _table(result))


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'clip':24} {'frames':>11} {'max |d|':>7} {'PyAV s':>8} {'decord s':>8}"]
    for clip in result["clips"]:
        frames, seconds = f"{clip['frames_pyav']}/{clip['frames_decord']}", (clip["pyav_s"], clip["decord_s"])
        lines.append(
            f"{clip['clip']:24} {frames:>11} {clip['max_difference']!s:>7} {seconds[0]:8.3f} {seconds[1]:8.3f}"
        )
    lines += [f"{clip['clip']:24} PyAV: {clip['pyav']}, decord: {clip['decord']}" for clip in result["spoiled"]]
    return "\n".join([*lines, f"widths decord gets wrong: {result['wrong_widths_px']}"])


if __name__ == "__main__":
    main()
