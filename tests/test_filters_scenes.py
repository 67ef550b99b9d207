"""Scenes: cuts and fades at known frames, wherever the feeding begins, and the clips made of them."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tokenmill.filters.scenes import CutFinder, SceneSettings, clips_of

FPS = 25.0


def shot(name, num_frames):
    """Pan slowly over a photograph: T H W C."""
    picture = np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((256, 144)))
    return np.stack([picture[:96, shift : shift + 171] for shift in range(num_frames)])


def faded(frames, out):
    """Fade to black over the last `out` frames, or from black over the first -`out`."""
    ramp = np.linspace(1, 0, abs(out))
    scale = np.ones(len(frames))
    scale[-out:] = ramp if out > 0 else scale[-out:]
    scale[: max(0, -out)] = ramp[::-1] if out < 0 else scale[:0]
    return (frames * scale[:, None, None, None]).astype(np.uint8)


def cuts(frames, start=0, batch=16, **settings):
    finder = CutFinder(SceneSettings(**settings), FPS)
    for position in range(start, len(frames), batch):
        finder.feed(position, frames[position : position + batch])
    finder.finish()
    return finder.cuts


@pytest.fixture(scope="module")
def film():
    """Three shots: a hard cut at 30, black in the middle of 70 to 80."""
    first, second, third = shot("astronaut", 30), shot("coffee", 40), shot("rocket", 50)
    black = np.zeros((10, *first.shape[1:]), np.uint8)
    return np.concatenate([first, faded(second, 12), black, faded(third, -12)])


def test_cut_and_fade_divide_the_film_into_its_shots(film):
    first, second, third = clips_of(cuts(film), 0, len(film), FPS, SceneSettings())
    assert (first, second[0], third[1]) == ((0, 30), 30, len(film))
    assert 66 <= second[1] <= third[0] <= 84


def test_pan_without_a_cut_has_none():
    assert cuts(shot("astronaut", 60)) == []


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_cuts_do_not_depend_on_batches(film, batch):
    assert cuts(film, batch=batch) == cuts(film)


@pytest.mark.parametrize("start", [1, 20, 29, 30, 45, 60])
def test_cuts_do_not_depend_on_where_the_feeding_begins(film, start):
    assert cuts(film, start=start) == [cut for cut in cuts(film) if cut > start]


def test_black_at_the_end_is_a_scene_of_its_own(film):
    ends_black = np.concatenate([film[:30], faded(film[30:60], 12), np.zeros_like(film[:20])])
    found = cuts(ends_black)
    assert found[0] == 30
    assert 55 <= found[-1] <= 60


def test_threshold_above_every_change_finds_no_cut(film):
    assert cuts(film[:60], content_threshold=250) == []


def test_scenes_that_are_too_short_are_no_clip():
    settings = SceneSettings(min_seconds=1, max_seconds=100)
    assert clips_of([30, 54, 80], 0, 120, FPS, settings) == [(0, 30), (54, 80), (80, 120)]


def test_scenes_that_are_too_long_become_even_pieces():
    settings = SceneSettings(min_seconds=1, max_seconds=2)
    assert clips_of([], 10, 131, FPS, settings) == [(10, 50), (50, 90), (90, 131)]


def test_cuts_outside_the_frames_make_no_clips():
    settings = SceneSettings(min_seconds=0.2, max_seconds=100)
    assert clips_of([0, 10, 50, 60], 10, 50, FPS, settings) == [(10, 50)]


def test_no_frames_make_no_cuts_and_no_clips():
    finder = CutFinder(SceneSettings(), FPS)
    finder.finish()
    assert clips_of(finder.cuts, 0, 0, FPS, SceneSettings()) == []
