"""Motion of clips: known pans of real photographs, still frames, trembling cameras, uneven times, any size."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from tests.moving import clip_of, pan, path_clip, photograph, window

from tokenmill.errors import RecipeError
from tokenmill.filters.motion_figures import COLUMNS
from tokenmill.filters.scorer import build_scorer

PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "china", "flower", "chelsea")


def score(clip, **settings):
    return {column: value for column, (value,) in build_scorer("motion", settings).score([clip]).items()}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_motion_of_pans_is_their_step_within_a_tenth(name):
    for share in (0.02, 0.04, 0.08, 0.12):
        assert score(pan(name, share, angle=20))["motion"] == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("settings", [{}, {"preset": "ultrafast"}, {"preset": "medium"}, {"short_side_px": 128}])
def test_motion_puts_still_before_slow_before_fast_pan(settings):
    still, slow, fast = (score(pan("coffee", share, num_frames=3), **settings) for share in (0.0, 0.01, 0.1))
    assert still["motion"] == 0 < slow["motion"] < fast["motion"]
    assert (still["static_share"], slow["static_share"], fast["static_share"]) == (1, 0, 0)


def test_motion_of_turned_clip_is_about_the_same():
    clip = pan("china", 0.05)
    upright = clip_of(np.ascontiguousarray(clip.frames.transpose(0, 2, 1, 3)))
    assert score(upright)["motion"] == pytest.approx(score(clip)["motion"], rel=0.05)


def test_motion_tells_smallest_largest_and_share_of_equal_frames():
    clip = path_clip("rocket", [(40, 40), (40, 40), (50, 40), (50, 40), (80, 40)])
    values = score(clip)
    assert values["static_share"] == 0.5
    assert values["motion_min"] == 0
    assert values["motion_max"] == pytest.approx(30 / 256, rel=0.1)
    assert values["motion"] == pytest.approx(10 / 256, rel=0.1)


def test_motion_is_a_speed_whatever_rate_the_file_has():
    steps = np.array([0, 1, 2, 4, 5, 8]) * 6.0
    uneven = path_clip("astronaut", [(40 + x, 40) for x in steps], seconds=steps / 12)
    assert score(uneven)["motion"] == pytest.approx(6 / 256, rel=0.1)
    assert score(uneven)["camera_shake"] < 0.002
    slower = clip_of(pan("astronaut", 0.04).frames, fps=2, seconds=[0, 1, 2, 3])
    assert score(slower)["motion"] == pytest.approx(0.02, rel=0.1)


def test_motion_is_the_same_where_a_film_leaves_out_repeated_frames():
    even = [40] * 7 + [40 + 12 * number for number in range(1, 7)]
    left_out = [0, *range(6, 13)]  # what an encoder of variable rate does to a still
    whole = score(path_clip("china", [(x, 40) for x in even]))
    sparse = score(path_clip("china", [(even[n], 40) for n in left_out], seconds=[n / 2 for n in left_out]))
    assert whole["motion"] == pytest.approx(6 * 12 / 256 / 12, rel=0.1)
    assert sparse["motion"] == pytest.approx(whole["motion"], rel=1e-3)
    assert whole["static_share"] == sparse["static_share"] == 0.5


def test_frames_of_one_time_count_as_a_step_apart():
    clip = clip_of(pan("astronaut", 0.04).frames, seconds=[0, 0, 0, 0])
    assert score(clip) == score(pan("astronaut", 0.04))


def test_camera_shake_is_small_for_pans_and_zooms_and_large_for_a_trembling_camera():
    random = np.random.default_rng(5)
    smooth = [(40 + 10 * number, 40 + 4 * number) for number in range(8)]
    trembling = [(x + a, y + b) for (x, y), (a, b) in zip(smooth, random.normal(0, 4, (8, 2)), strict=True)]
    pan_shake = score(path_clip("china", smooth))["camera_shake"]
    hand_shake = score(path_clip("china", trembling))["camera_shake"]
    places = np.array(trembling) / 256
    assert hand_shake == pytest.approx(np.linalg.norm(np.diff(places, n=2, axis=0), axis=1).mean(), rel=0.1)
    assert hand_shake > 20 * pan_shake
    zoom = np.stack([_centre("china", 1 + 0.04 * number) for number in range(5)])
    assert score(clip_of(zoom))["camera_shake"] < hand_shake / 5


def _centre(name, scale):
    import cv2

    image = photograph(name)
    larger = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return window(larger, ((larger.shape[1] - 455) / 2, (larger.shape[0] - 256) / 2))


def test_camera_shake_overlooks_what_moves_in_front_of_a_steady_camera():
    background, front = window(photograph("china"), (40, 40)), photograph("coffee")[:120, :140]
    frames = np.repeat(background[None], 6, axis=0)
    for frame, x in zip(frames, (0, 90, 20, 150, 60, 10), strict=True):
        frame[100:220, x : x + 140] = front
    values = score(clip_of(frames))
    assert values["camera_shake"] < 0.003 < 0.01 < values["motion"]


def test_clip_of_one_frame_has_no_motion_and_of_two_no_shake():
    frames = pan("coffee", 0.05).frames
    assert score(clip_of(frames[:1])) == dict.fromkeys(COLUMNS)
    values = score(clip_of(frames[:2]))
    assert values["camera_shake"] is None and values["motion"] == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (24, 500), (17, 31), (63, 65), (301, 127)])
@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_motion_takes_frames_of_any_size(size, preset):
    noise = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    assert score(clip_of(noise[[0, 0, 0]]), preset=preset)["motion"] == 0
    assert all(np.isfinite(value) for value in score(clip_of(noise), preset=preset).values())


def test_motion_of_small_frames_is_their_step():
    frames = np.stack([window(photograph("coffee"), (300 + 2 * n, 200), (60, 40)) for n in range(3)])
    assert score(clip_of(frames))["motion"] == pytest.approx(2 / 40, rel=0.1)


def test_motion_does_not_depend_on_company_nor_on_opencv_threads():
    import cv2

    clips = [pan(name, share) for name, share in zip(PHOTOGRAPHS[:4], (0, 0.01, 0.05, 0.3), strict=True)]
    scorer = build_scorer("motion")
    together = scorer.score(clips)
    table = pl.DataFrame(dict(together), schema=COLUMNS, strict=True)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        alone = [pl.DataFrame(dict(scorer.score([clip])), schema=COLUMNS) for clip in clips]
    finally:
        cv2.setNumThreads(before)
    assert table.equals(pl.concat(alone))


def test_motion_that_is_misspelt_in_a_recipe_says_what_is_allowed():
    with pytest.raises(RecipeError, match="unknown setting 'device' for flow 'dis'; allowed: flow, preset, "):
        build_scorer("motion", {"device": "cuda"})
    with pytest.raises(RecipeError, match=r"preset: .*found 'quick'"):
        build_scorer("motion", {"preset": "quick"})
    assert build_scorer("motion", {"preset": "fast"}).fingerprint == build_scorer("motion").fingerprint
    assert build_scorer("motion", {"preset": "medium"}).fingerprint != build_scorer("motion").fingerprint
