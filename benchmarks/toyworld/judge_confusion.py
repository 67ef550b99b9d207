"""How far can the judge be trusted? What it reads of held-out true scenes, clean and spoiled, and of what is no scene.

    python -m benchmarks.toyworld.judge_confusion [--scenes 1000] [--tokenizer scenes] [--json]

A scene is read right if every thing's shape and colour are, nothing is added, and the background has its name. Spoiled
by blur (sigma in pixels), noise (standard deviation) and JPEG (quality), pictures are all the same scenes. What is no
scene: even areas, noise, smooth noise, and the decoded pictures of random codes of a tokenizer: what an untrained model
draws. Places are judged by the distance from the truth in pixels. Times are CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.toyworld.judge_pixels import Pixels
from benchmarks.toyworld.judge_reading import PICTURES, Reading, Seen, read
from benchmarks.toyworld.scenes import HELDOUT_SEEDS, draw, scene
from benchmarks.toyworld.world import SIZE
from tokenmill.demo.world import Scene, Thing
from tokenmill.tokenize.vision import VisionTokenizer, load_vision_tokenizer

LIKENESSES = (0.5, 0.6, 0.66, 0.72, 0.78, 0.84)
Spoil = Callable[[Pixels, int], Pixels]


def blurred(sigma: float, noise: float = 0.0) -> Spoil:
    """Return how to blur and to add noise."""

    def spoil(pixels: Pixels, seed: int) -> Pixels:
        soft = gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0))
        soft += np.random.default_rng(seed).normal(0, noise, soft.shape)
        return np.asarray(soft.clip(0, 255).round(), np.uint8)

    return spoil


def as_jpeg(quality: int) -> Spoil:
    """Return how to pass through a JPEG."""

    def spoil(pixels: Pixels, seed: int) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return spoil


SPOILED: Mapping[str, Spoil] = {
    "clean": lambda pixels, seed: pixels,
    "blur 0.7": blurred(0.7),
    "blur 1.0, noise 5": blurred(1.0, 5.0),
    "blur 1.4, noise 5": blurred(1.4, 5.0),
    "blur 1.8, noise 5": blurred(1.8, 5.0),
    "noise 8": blurred(0.0, 8.0),
    "noise 12": blurred(0.0, 12.0),
    "noise 16": blurred(0.0, 16.0),
    "jpeg 75": as_jpeg(75),
    "jpeg 40": as_jpeg(40),
}


def confusion(scenes: Sequence[Scene], pictures: Sequence[Pixels]) -> dict[str, Any]:
    """Read pictures and compare with the scenes they show."""
    started = time.process_time()
    readings = [read(picture) for picture in pictures]
    seconds = time.process_time() - started
    shapes: Counter[str] = Counter()
    colours: Counter[str] = Counter()
    away: list[float] = []
    for made, reading in zip(scenes, readings, strict=True):
        for thing, seen in _paired(made, reading):
            shapes[f"{thing.shape} read as {'nothing' if seen is None else seen.shape}"] += 1
            colours[f"{thing.colour} read as {'nothing' if seen is None else seen.colour}"] += 1
            if seen is not None:
                away.append(_distance(thing, seen))
    return {
        "right": sum(map(is_right, scenes, readings)) / len(scenes),
        "wrong_shapes": {name: n for name, n in sorted(shapes.items()) if not _is_same(name)},
        "wrong_colours": {name: n for name, n in sorted(colours.items()) if not _is_same(name)},
        "things": shapes.total(),
        "px_median": float(np.median(away)) if away else None,
        "px_p99": float(np.quantile(away, 0.99)) if away else None,
        "pictures_per_s": len(pictures) / seconds,
    }


def is_right(made: Scene, reading: Reading) -> bool:
    """Tell whether exactly what a scene has was read."""
    there = Counter((thing.shape, thing.colour) for thing in made.objects)
    read_back = Counter((seen.shape, seen.colour) for seen in reading.objects)
    return there == read_back and not reading.junk and reading.background == made.background


def _paired(made: Scene, reading: Reading) -> list[tuple[Thing, Seen | None]]:
    """Pair each thing with the object read nearest to it, within its radius."""
    pairs: list[tuple[Thing, Seen | None]] = []
    for thing in made.objects:
        near = [seen for seen in reading.objects if _distance(thing, seen) < thing.radius * SIZE]
        pairs.append((thing, min(near, key=lambda seen: _distance(thing, seen)) if near else None))
    return pairs


def _distance(thing: Thing, seen: Seen) -> float:
    return float(np.hypot(seen.x - thing.x * SIZE, seen.y - thing.y * SIZE))


def _is_same(name: str) -> bool:
    truth, found = name.split(" read as ")
    return truth == found


def no_scenes(number: int, vision: VisionTokenizer | None) -> dict[str, list[Pixels]]:
    """Return pictures that show nothing of the world."""
    random = np.random.default_rng(0)
    areas = [np.full((SIZE, SIZE, 3), random.integers(0, 256, 3), np.uint8) for _ in range(number)]
    noise = list(random.integers(0, 256, (number, SIZE, SIZE, 3)).astype(np.uint8))
    smooth = [np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(number)]
    blobs = [np.asarray(gaussian_filter(picture, (2, 2, 0))) for picture in smooth]
    found = {"even": areas, "noise": noise, "tiles": smooth, "smooth noise": blobs}
    if vision is not None:
        side = SIZE // vision.spatial_factor
        codes = random.integers(0, vision.codebook_size, (number, side, side)).astype(np.uint32)
        found["random codes"] = list(vision.decode_images(codes))
    return found


def thresholds(scenes: Sequence[Scene], pictures: Sequence[Pixels], others: Sequence[Pixels]) -> dict[str, Any]:
    """Return what other thresholds of likeness would read right, and find in pictures that are no scene."""
    found = {}
    for least in LIKENESSES:
        look = replace(PICTURES, least_likeness=least)
        found[f"{least:.2f}"] = {
            name: float(np.mean([is_right(m, read(SPOILED[name](p, n), look)) for n, (m, p) in enumerate(pairs)]))
            for name in ("clean", "blur 1.4, noise 5", "noise 12", "jpeg 40")
            for pairs in [list(zip(scenes, pictures, strict=True))]
        } | {"objects in no scene": float(np.mean([bool(read(one, look).objects) for one in others]))}
    return found


def study(number: int, vision: VisionTokenizer | None) -> dict[str, Any]:
    """Measure all of it."""
    scenes = [scene(HELDOUT_SEEDS + place, unseen=place % 4 == 3) for place in range(number)]
    pictures = [draw(made) for made in scenes]
    read(pictures[0])
    table = {
        name: confusion(scenes, [spoil(picture, place) for place, picture in enumerate(pictures)])
        for name, spoil in SPOILED.items()
    }
    if vision is not None:
        stacked = np.stack(pictures)
        parts = [stacked[start : start + 64] for start in range(0, number, 64)]
        decoded = np.concatenate([vision.decode_images(vision.encode_images(part)) for part in parts])
        table["tokenizer"] = confusion(scenes, list(decoded))
    empty = {}
    random_scenes = no_scenes(number, vision)
    for name, others in random_scenes.items():
        readings = [read(picture) for picture in others]
        empty[name] = {
            "unreadable": sum(reading.background is None for reading in readings) / len(readings),
            "with_objects": sum(bool(reading.objects) for reading in readings) / len(readings),
            "like_a_scene": sum(bool(reading.objects) and not reading.junk for reading in readings) / len(readings),
        }
    few = max(1, number // 4)
    hardest = random_scenes["random codes" if vision is not None else "smooth noise"]
    return {
        "scenes": number,
        "true_scenes": table,
        "no_scenes": empty,
        "thresholds": thresholds(scenes[:few], pictures[:few], hardest),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the study."""
    parser = argparse.ArgumentParser(description="What the toy world's judge reads right.")
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--tokenizer", help="a vision tokenizer by name or folder: also judge what it leaves")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    found = study(asked.scenes, load_vision_tokenizer(asked.tokenizer) if asked.tokenizer else None)
    if asked.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, row in found["true_scenes"].items():
        print(f"{name:18} right {row['right']:.3f}  px {row['px_median']}  {row['pictures_per_s']:.0f}/s", end="  ")
        print(row["wrong_shapes"], row["wrong_colours"])
    for name, row in found["no_scenes"].items():
        print(f"{name:18} {row}")
    for name, row in found["thresholds"].items():
        print(f"likeness >= {name}  {row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
