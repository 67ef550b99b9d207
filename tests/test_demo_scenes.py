"""Scenes: a pure function of the seed, and captions that are true of the pixels."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tokenmill.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    captions,
    motion,
    render,
    render_motion,
    scene,
)
from tokenmill.demo.wording import NUMBERS

SEEDS = range(300)
COUNTED = re.compile(
    rf"\b(an?|one|two|three|four|five) (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b"
)


def counted(caption):
    """Read a caption back: how many of each (colour, shape), and the sizes it claims."""
    found, sizes = Counter(), {}
    for number, size, colour, shape in COUNTED.findall(caption):
        found[colour, shape] += 1 if number in ("a", "an") else NUMBERS.index(number)
        if size:
            sizes[colour, shape] = size
    return found, sizes


def blobs(pixels, drawn):
    """Segment a picture: (colour name, centre x, centre y) of every connected area unlike the background."""
    ground = render(replace(drawn, objects=()), len(pixels)).astype(int)
    unlike = (np.abs(pixels.astype(int) - ground).max(axis=2) > 24).astype(np.uint8)
    count, labels, _, centres = cv2.connectedComponentsWithStats(unlike, connectivity=8)
    names = list(COLOURS)
    found = []
    for label in range(1, count):
        colour = np.median(pixels[labels == label], axis=0)
        nearest = min(names, key=lambda name: float(np.linalg.norm(colour - np.array(COLOURS[name]))))
        found.append((nearest, *centres[label] / pixels.shape[0]))
    return found


def test_scene_same_seed_gives_same_pixels_other_seed_gives_others():
    assert all(np.array_equal(render(scene(seed)), render(scene(seed))) for seed in range(5))
    assert len({render(scene(seed)).tobytes() for seed in SEEDS}) == len(SEEDS)


def test_scene_descriptions_match_their_golden_digest():
    """Whoever changes what a seed means raises `assemble.VERSION` and this digest."""
    described = [[scene(seed).to_json(), motion(seed).to_json(), captions(scene(seed))] for seed in range(64)]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    assert digest == "ad4fd0b70b92f7e8be35905aa607d256d44e2c88b862e3ae98a98f1bbac055bd"


def test_scene_survives_json():
    for drawn in (scene(3), scene(11), motion(5)):
        assert Scene.from_json(json.loads(json.dumps(drawn.to_json()))) == drawn


@pytest.mark.parametrize("size", [32, 64, 96])
def test_render_any_size_gives_square_rgb(size):
    pixels = render(scene(1), size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8


def test_captions_every_scene_has_four_ascii_wordings():
    for seed in SEEDS:
        for wordings in (captions(scene(seed)), captions(motion(seed))):
            assert len(set(wordings)) >= 4
            assert all(wording.isascii() and wording == wording.lower() for wording in wordings)


def test_captions_name_exactly_the_objects_of_the_description():
    for seed in SEEDS:
        drawn = scene(seed)
        truth = Counter((thing.colour, thing.shape) for thing in drawn.objects)
        sizes = {(thing.colour, thing.shape): thing.size for thing in drawn.objects}
        for wording in captions(drawn):
            found, claimed = counted(wording)
            assert found == truth, wording
            assert claimed.items() <= sizes.items(), wording
            assert [name for name in BACKGROUNDS if name in wording.split()] in ([], [drawn.background]), wording


def test_groups_counts_add_up_to_the_objects():
    for seed in SEEDS:
        drawn = scene(seed)
        assert sum(group.count for group in drawn.groups) == len(drawn.objects)
        assert {group["count"] for group in drawn.to_json()["groups"]} == {group.count for group in drawn.groups}


def test_render_shows_as_many_separate_objects_as_described_in_their_colours():
    for seed in SEEDS[:150]:
        drawn = scene(seed)
        found = blobs(render(drawn, 128), drawn)
        assert Counter(name for name, _, _ in found) == Counter(thing.colour for thing in drawn.objects), seed


def test_captions_relations_hold_in_the_pixels():
    checked = 0
    for drawn in map(scene, SEEDS):
        if drawn.kind != "pair":
            continue
        at = {name: (x, y) for name, x, y in blobs(render(drawn, 128), drawn)}
        for wording in captions(drawn):
            (first, _), (second, _) = ((colour, shape) for _, _, colour, shape in COUNTED.findall(wording))
            where = re.search("left of|right of|above|below", wording).group()
            (x1, y1), (x2, y2) = at[first], at[second]
            assert {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[where], wording
            checked += 1
    assert checked > 100


def test_captions_places_hold_in_the_pixels():
    for drawn in map(scene, SEEDS):
        if drawn.kind != "single":
            continue
        ((_, x, y),) = blobs(render(drawn, 128), drawn)
        wording = captions(drawn)[0]
        assert ("left" in wording, "right" in wording) == (x < 0.33, x > 0.67) or min(
            abs(x - 1 / 3), abs(x - 2 / 3)
        ) < 0.03
        assert ("top" in wording, "bottom" in wording) == (y < 0.33, y > 0.67) or min(
            abs(y - 1 / 3), abs(y - 2 / 3)
        ) < 0.05


def test_motion_object_moves_where_the_caption_says_and_the_other_stays():
    for seed in range(40):
        moving = motion(seed)
        frames = render_motion(moving, 6, 96)
        first, last = ({n: (x, y) for n, x, y in blobs(frame, moving)} for frame in (frames[0], frames[-1]))
        mover, *others = moving.objects
        (x0, y0), (x1, y1) = first[mover.colour], last[mover.colour]
        far = {"right": x1 - x0, "left": x0 - x1, "down": y1 - y0, "up": y0 - y1}[moving.motion]
        assert far > 0.3
        assert all(moving.motion in wording for wording in captions(moving))
        for other in others:
            assert np.allclose(first[other.colour], last[other.colour], atol=0.02)
