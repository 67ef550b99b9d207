"""The demo's first source: scenes as a WebDataset in img2dataset's layout; the last shard ends with spoiled ones.

Most pictures are JPEG, every eighth is a PNG. The exact description of each scene goes along as an additional column,
so a judge needs no second file; the price is 2 KB of JSON beside each 1.5 KB of picture.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.demo.img2dataset import Sample, sample, write_shard
from tokenmill.demo.scenes import Scene, captions, render, scene
from tokenmill.demo.spoiled import Outcome, Spoiled, cut_off, encoded, monochrome, resized

SAMPLES_PER_SHARD = 400

Make = Callable[[bytes, NDArray[np.uint8]], bytes | None]
_SPOILERS: tuple[tuple[str, Outcome, str, Make], ...] = (
    ("JPEG cut off after 60 % of its bytes", "failed", "truncated", lambda data, _: cut_off(data)),
    ("file without a byte", "failed", "empty", lambda *_: b""),
    ("sample that has a caption but no picture", "failed", "no_image", lambda *_: None),
    ("picture in grey levels only", "dropped", "colourfulness", lambda _, pixels: encoded(monochrome(pixels), "jpg")),
    ("the same bytes under another key", "dropped", "exact_duplicate", lambda data, _: data),
    ("re-encoded at JPEG quality 60", "dropped", "near_duplicate", lambda _, pixels: encoded(pixels, "jpg", 60)),
    (
        "enlarged by an eighth",
        "dropped",
        "near_duplicate",
        lambda _, pixels: encoded(resized(pixels, 1.125), "jpg", 90),
    ),
)


def write_scenes(folder: Path, seeds: range, size: int, *, spoil: bool) -> list[Spoiled]:
    """Write the scenes of `seeds` as shards into `folder`; `spoil` adds the spoiled samples to the last one."""
    spoiled: list[Spoiled] = []
    starts = range(0, len(seeds), SAMPLES_PER_SHARD)
    for shard, start in enumerate(starts):
        part = seeds[start : start + SAMPLES_PER_SHARD]
        samples = [_scene_sample(shard, index, seed, size) for index, seed in enumerate(part)]
        if spoil and shard == len(starts) - 1:
            samples, spoiled = _spoil(shard, samples, part, size)
        write_shard(folder, shard, samples)
    return spoiled


def caption(seed: int) -> str:
    """Return the one wording that the scene of `seed` brings as its caption."""
    return random.Random(f"wording {seed}").choice(captions(scene(seed)))


def _scene_sample(shard: int, index: int, seed: int, size: int) -> Sample:
    drawn = scene(seed)
    extension = "png" if index % 8 == 7 else "jpg"
    picture = encoded(render(drawn, size), extension)
    return sample(shard, index, picture, extension=extension, size=(size, size), columns=_columns(seed, drawn))


def _columns(seed: int, drawn: Scene) -> dict[str, Any]:
    return {
        "caption": caption(seed),
        "url": f"scene://{seed}",
        "scene": json.dumps(drawn.to_json()),
        "captions": list(captions(drawn)),
    }


def _spoil(shard: int, good: Sequence[Sample], seeds: range, size: int) -> tuple[list[Sample], list[Spoiled]]:
    """Add one sample for each spoiler: duplicates of good ones, the others from scenes that occur nowhere else."""
    samples, spoiled = list(good), []
    for number, (what, expected, hint, make) in enumerate(_SPOILERS):
        twin = good[number] if hint.endswith("duplicate") else None
        seed = seeds[number] if twin else seeds.stop + number
        drawn = scene(seed)
        pixels = render(drawn, size)
        picture = make(encoded(pixels, "jpg"), pixels)
        added = sample(shard, len(samples), picture, extension="jpg", size=(size, size), columns=_columns(seed, drawn))
        samples.append(added)
        spoiled.append(_record(added.key, what, expected, hint, twin))
    return samples, spoiled


def _record(key: str, what: str, expected: Outcome, hint: str, twin: Sample | None) -> Spoiled:
    name = twin.key if twin else None
    return Spoiled(source="scenes", name=key, what=what, expected=expected, expected_reason_hint=hint, twin=name)
