"""Scenes: cuts and fades at known frames, wherever the feeding begins, flashes and motion that are none."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tokenmill.errors import RecipeError
from tokenmill.filters.scene_boundaries import Boundary, merged
from tokenmill.filters.scene_fades import ramp_frames
from tokenmill.filters.scene_settings import AdaptiveSettings, ContentSettings, FadeSettings, scene_settings
from tokenmill.filters.scenes import Scene, SceneFinder, SceneSettings

FPS = 25.0
PLAIN = ContentSettings(threshold=27.0, motion_ratio=0.0)
DETECTORS = {
    "default": SceneSettings(),
    "content": SceneSettings(content=PLAIN, fades=None),
    "edges": SceneSettings(content=ContentSettings(edges=0.5), fades=None),
    "fades": SceneSettings(content=None),
    "adaptive": SceneSettings(content=None, adaptive=AdaptiveSettings(window=3)),
    "everything": SceneSettings(adaptive=AdaptiveSettings(), stride_seconds=0.7),
}


def shot(name, num_frames, speed=1):
    """Pan over a photograph: T H W C."""
    picture = np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((256, 96)))
    wide = np.concatenate([picture, picture[:, ::-1]] * (1 + speed * num_frames // 256), axis=1)
    return np.stack([wide[:64, speed * number : speed * number + 114] for number in range(num_frames)])


def faded_out(frames, ramp):
    """Fade to black over the last `ramp` frames, the last of which is not black yet."""
    scale = np.minimum(1, np.arange(len(frames), 0, -1) / (ramp + 1))
    return (frames * scale[:, None, None, None]).astype(np.uint8)


def faded_in(frames, ramp):
    return faded_out(frames[::-1], ramp)[::-1]


def black(num_frames):
    return np.zeros((num_frames, 64, 114, 3), np.uint8)


def even(num_frames):
    return np.arange(num_frames + 1) / FPS


def finder_over(film, settings, batch=16):
    finder = SceneFinder(settings, even(len(film)))
    for position in range(0, len(film), batch):
        finder.feed(position, film[position : position + batch])
    return finder


def cuts(film, **settings):
    finder = finder_over(film, SceneSettings(**settings))
    return [(one.end, one.begin) for one in finder.boundaries]


def scenes_by_ranges(film, settings, shares, batch=9):
    """Look at a film as its ranges' workers do, each for itself."""
    found = []
    for share in range(shares):
        start, end = len(film) * share // shares, len(film) * (share + 1) // shares
        finder = SceneFinder(settings, even(len(film)))
        position = max(0, start - finder.lead_in_frames)
        while position < len(film) and not finder.knows(end):
            finder.feed(position, film[position : position + batch])
            position += batch
        found += finder.scenes(start, end)
    return found


@pytest.fixture(scope="module")
def film():
    """Black; a shot with a flash; a cut at 56; a fade, black from 92 to 100; a dark end with a cut next to it."""
    first = shot("astronaut", 50)
    first[30] = np.minimum(255, first[30].astype(int) + 120)
    parts = [black(6), faded_in(first, 8), faded_out(shot("coffee", 40), 10), black(6)]
    parts += [faded_in(shot("rocket", 40), 12), shot("chelsea", 30), black(9)]
    return np.concatenate(parts)


def test_cuts_and_fades_are_found_and_the_flash_is_none(film):
    found = cuts(film)
    assert [round((end + begin) / 2) for end, begin in found] == pytest.approx([3, 56, 99, 142, 176], abs=2)
    assert found[0][0] == 0 and found[-1][1] == len(film)
    assert found[1] == (56, 56) and found[3] == (142, 142)


def test_fades_are_trimmed_to_the_frames_at_full_brightness(film):
    scenes = finder_over(film, SceneSettings()).scenes(0, len(film))
    expected = [(14, 56), (56, 86), (114, 142), (142, 172)]
    assert np.abs(np.array([(s.start, s.end) for s in scenes]) - expected).max() <= 1


def test_fades_that_are_not_trimmed_end_at_the_black(film):
    scenes = finder_over(film, SceneSettings(fades=FadeSettings(trim=False))).scenes(0, len(film))
    _, second, third, _ = scenes
    assert (second.start, third.end) == (56, 142)
    assert 94 <= second.end <= 96 and 102 <= third.start <= 104


def test_ramp_is_no_longer_than_the_recipe_allows():
    long_fade = np.concatenate([faded_out(shot("coffee", 80), 60), black(5)])
    (scene,) = finder_over(long_fade, SceneSettings(fades=FadeSettings(max_seconds=1.0))).scenes(0, 85)
    (boundary,) = finder_over(long_fade, SceneSettings()).boundaries
    assert scene == Scene(0, boundary.end - 25)


def test_hard_cut_to_black_costs_no_frame_of_the_picture():
    scenes = finder_over(np.concatenate([shot("coffee", 30), black(5), shot("coffee", 30)]), SceneSettings())
    assert scenes.scenes(0, 65) == [Scene(0, 30), Scene(35, 65)]


@pytest.mark.parametrize("name", DETECTORS)
def test_cuts_do_not_depend_on_batches(film, name):
    whole = finder_over(film, DETECTORS[name], batch=len(film)).boundaries
    assert all(finder_over(film, DETECTORS[name], batch=batch).boundaries == whole for batch in (1, 7))


@pytest.mark.parametrize("name", DETECTORS)
def test_scenes_do_not_depend_on_where_ranges_begin(film, name):
    whole = finder_over(film, DETECTORS[name]).scenes(0, len(film))
    assert len(whole) >= 2
    for shares in (2, 7, 90):  # ninety: at every second frame, black ones too
        assert scenes_by_ranges(film, DETECTORS[name], shares) == whole, shares


def test_range_stops_looking_soon_behind_its_end(film):
    finder = SceneFinder(SceneSettings(), even(len(film)))
    finder.feed(0, film[:64])
    assert finder.knows(50) and not finder.knows(57)


def test_picture_in_the_dark_is_not_black():
    night = np.zeros((40, 64, 114, 3), np.uint8)
    night[:, 20:30, 20:34] = 150
    assert night.mean() < 12
    assert cuts(night) == []


def test_fast_pan_is_no_cut_and_plain_content_detector_takes_it_for_many():
    fast = np.concatenate([shot("astronaut", 30), shot("coffee", 30, speed=40)])
    assert cuts(fast) == [(30, 30)]
    assert len(cuts(fast, content=PLAIN)) > 5


@pytest.mark.parametrize("length", [1, 2])
def test_flash_is_no_cut_unless_flashes_are_not_asked_for(length):
    flashed = shot("coffee", 30)
    flashed[14 : 14 + length] = 255
    assert cuts(flashed) == []
    assert cuts(flashed, max_flash_frames=0, content=PLAIN) == [(14, 14), (14 + length, 14 + length)]


def test_cut_beside_a_flash_is_found():
    flashed = np.concatenate([shot("astronaut", 20), shot("coffee", 20)])
    flashed[21] = np.minimum(255, flashed[21].astype(int) + 100)
    assert cuts(flashed, content=PLAIN) == [(20, 20)]


def test_stray_frames_at_the_films_ends_are_scenes_of_their_own():
    stray = np.concatenate([shot("astronaut", 1), shot("coffee", 30), shot("chelsea", 1)])
    assert cuts(stray) == [(1, 1), (31, 31)]


def test_black_and_white_film_has_its_cuts():
    joined = np.concatenate([shot("astronaut", 20), shot("coffee", 20), shot("chelsea", 20)])
    gray = np.repeat(joined.mean(3, keepdims=True).astype(np.uint8), 3, axis=3)
    assert cuts(gray) == [(20, 20), (40, 40)]


def test_film_all_black_has_no_scene():
    assert finder_over(black(40), SceneSettings()).scenes(0, 40) == []


def test_film_without_frames_has_no_scene():
    finder = SceneFinder(SceneSettings(), np.zeros(1))
    finder.feed(0, black(0))
    assert finder.scenes(0, 0) == []


def test_stride_divides_a_film_of_a_varying_rate_by_time():
    times = np.concatenate([np.arange(20) * 0.1, 2 + np.arange(41) * 0.5])
    finder = SceneFinder(SceneSettings(content=None, fades=None, stride_seconds=4.0), times)
    assert finder.knows(60)
    assert [times[scene.start] for scene in finder.scenes(0, 60)] == pytest.approx([0, 4, 8, 12, 16, 20])


def test_stride_through_years_of_pauses_is_as_cheap_as_its_frames():
    times = np.arange(1001) * 80_000.0
    finder = SceneFinder(SceneSettings(content=None, fades=None, stride_seconds=0.001), times)
    assert len(finder.scenes(0, 1000)) == 1000


def test_frames_out_of_order_are_refused(film):
    finder = SceneFinder(SceneSettings(), even(len(film)))
    finder.feed(0, film[:4])
    with pytest.raises(ValueError, match="4 is next, not 6"):
        finder.feed(6, film[6:8])


def test_cut_at_the_edge_of_black_is_the_blacks():
    fade = Boundary(10, 20, is_fade=True)
    cuts_around = [Boundary(frame, frame) for frame in (7, 8, 15, 22, 23)]
    assert merged([fade, *cuts_around]) == [cuts_around[0], fade, cuts_around[-1]]


def test_boundaries_that_overlap_are_one():
    cut = Boundary(30, 30)
    assert merged([Boundary(10, 14), Boundary(12, 20), cut, cut]) == [Boundary(10, 20), cut]


@pytest.mark.parametrize(
    ("levels", "frames"),
    [
        ([20, 40, 60, 80, 100, 100, 100, 100, 100], 4),
        ([20, 20, 40, 40, 60, 80, 80, 100, 100, 100, 100, 100], 7),  # repeated frames
        ([100, 100.5, 101, 101.5, 102, 102.5], 0),  # a hard cut, then a slow change
        ([50, 49, 48, 47], 0),
        ([10, 20, 30], 3),  # the scene is over before the picture is there
        ([], 0),
    ],
)
def test_ramp_ends_where_the_picture_is_there(levels, frames):
    assert ramp_frames(np.array(levels, float)) == frames


def test_settings_survive_a_recipe_and_name_everything_in_the_identity():
    settings = SceneSettings(adaptive=AdaptiveSettings(window=4), stride_seconds=5.0)
    assert scene_settings(asdict(settings)) == settings
    assert settings.identity["adaptive"] == {"threshold": 3.0, "window": 4, "min_content": 15.0}
    assert settings.identity != SceneSettings(stride_seconds=5.0).identity


@pytest.mark.parametrize(
    "settings",
    [{"min_seconds": 5, "max_seconds": 5}, {"max_seconds": 301}, {"content": {"hue": 0, "saturation": 0, "luma": 0}}],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(RecipeError, match=r"filter\.video\.scenes"):
        scene_settings(settings)
