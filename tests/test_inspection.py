"""`inspect` with its decoders: a stored sample says its caption and shows its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenmill.demo.scenes import captions, render, scene
from tokenmill.errors import ManifestError
from tokenmill.inspection import inspect_path


def archives(root: Path, source: str) -> list[Path]:
    return sorted((root / "tokenize" / source).glob("*/*.tar"))


def test_inspect_of_a_stored_picture_says_its_caption_and_writes_it(finished, tmp_path):
    archive = archives(finished.root, "scenes")[0]
    key = inspect_path(str(archive))[0]["keys"][0]
    found, text = inspect_path(str(archive), key, tmp_path)
    seed = int(key[:5]) * 6 + int(key[5:])
    caption, picture = found["segments"]
    assert caption["says"] == captions(scene(seed))[0]
    assert caption["says"] in text
    decoded = np.asarray(Image.open(picture["picture"])).astype(int)
    original = render(scene(seed), 64).astype(int)
    assert decoded.shape == original.shape
    assert np.abs(decoded - original).mean() < 30


def test_inspect_of_a_stored_clip_writes_frames_side_by_side(finished, tmp_path):
    archive = str(archives(finished.root, "clips")[0])
    found, _ = inspect_path(archive, inspect_path(archive)[0]["keys"][0], tmp_path)
    vision = next(segment for segment in found["segments"] if "vision" in segment)
    t, h, w = vision["vision"]
    width, height = Image.open(vision["picture"]).size
    assert (width, height) == (min(8, 4 * t) * 8 * w, 8 * h)


@pytest.mark.parametrize(("place", "kind"), [("", "folder"), ("tokenize/text/*", "stage"), ("plans/*/*", "plan"),
                                             ("select/scenes/*/commits/*.json", "record"),
                                             ("select/scenes/*/snapshots/*.json", "snapshot")])  # fmt: skip
def test_inspect_knows_what_lies_at_a_path(finished, place, kind):
    path = str(next(finished.root.glob(place)) if place else finished.root)
    found, text = inspect_path(path)
    assert (found["path"], found["kind"]) == (path, kind)
    assert kind in text
    json.dumps(found, default=str)


def test_inspect_of_nothing_says_so(tmp_path):
    with pytest.raises(ManifestError, match="nothing is there"):
        inspect_path(str(tmp_path / "absent"))


def test_plan_of_pictures_and_clips_says_at_which_areas_they_were_tokenized(finished):
    (path,) = finished.root.glob("plans/*/*/plan.json")
    assert json.loads(path.read_text())["areas"] == {"image": [1024, 4096, 5.0], "video": [1024, 1024, 5.0]}
