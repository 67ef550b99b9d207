"""Scenes to clips: lengths and pieces by time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import RecipeError
from tokenmill.filters.scene_clips import ClipSpan, Scene, clips_of
from tokenmill.filters.scenes import SceneSettings
from tokenmill.recipe import check_recipe

EVEN = np.arange(2001) / 25


def settings(least, most):
    return SceneSettings(min_seconds=least, max_seconds=most)


def test_scenes_that_are_too_short_are_no_clip():
    found = clips_of([Scene(0, 30), Scene(30, 54), Scene(54, 79), Scene(80, 80)], EVEN, settings(1, 100))
    assert [(clip.start, clip.end) for clip in found] == [(0, 30), (54, 79)]


def test_scene_of_exactly_the_longest_length_stays_whole():
    assert clips_of([Scene(5, 55)], EVEN, settings(1, 2)) == [ClipSpan(start=5, end=55, scene=5, piece=0, pieces=1)]


def test_scenes_that_are_too_long_become_even_pieces():
    found = clips_of([Scene(10, 131)], EVEN, settings(1, 2))
    assert [(clip.start, clip.end, clip.scene, clip.piece, clip.pieces) for clip in found] == [
        (10, 50, 10, 0, 3),
        (50, 91, 10, 1, 3),
        (91, 131, 10, 2, 3),
    ]


def test_lengths_go_by_time_where_the_rate_varies():
    times = np.concatenate([np.arange(100) / 50, 2 + np.arange(101) / 10])  # 2 s of 50, then 10 s of 10 frames a second
    found = clips_of([Scene(0, 30), Scene(100, 130), Scene(0, 200)], times, settings(1, 4))
    assert (found[0].start, found[0].end) == (100, 130)  # 3 s; 30 frames before are 0.6 s
    seconds = [times[clip.end] - times[clip.start] for clip in found[1:]]
    assert seconds == pytest.approx([4, 4, 4])


@given(
    gaps=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=300),
    most=st.floats(0.6, 20.0),
)
def test_pieces_cover_a_scene_and_are_of_like_length(gaps, most):
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    clips = clips_of([Scene(0, len(gaps))], times, settings(1e-4, most))
    assert [clip.start for clip in clips] == [0, *(clip.end for clip in clips[:-1])] and clips[-1].end == len(gaps)
    seconds = np.array([times[clip.end] - times[clip.start] for clip in clips])
    assert seconds.max() <= most + 1e-5
    assert [clip.piece for clip in clips] == list(range(clips[0].pieces))
    assert len(clips) == 1 or seconds.min() >= seconds.mean() - 2 * max(gaps)


@pytest.mark.parametrize("paused_s", [30.0, 80_000.0])
def test_recording_that_pauses_again_and_again_is_divided_at_once(paused_s):
    times = np.arange(1001) * paused_s  # hours of pictures, or years
    found = clips_of([Scene(0, 1000)], times, settings(1, 20))
    assert [(clip.start, clip.end) for clip in found] == [(number, number + 1) for number in range(1000)]


def test_pause_in_a_film_is_a_clip_of_its_own():
    times = np.concatenate([np.arange(500) / 25, 80_000 + np.arange(501) / 25])  # frame 499 stays for a day
    found = clips_of([Scene(0, 1000)], times, settings(1, 8))
    assert [clip.end for clip in found] == [200, 400, 499, 500, 700, 900, 1000]
    assert [times[clip.end] - times[clip.start] for clip in found if clip.start != 499] == pytest.approx(
        [8, 8, 3.96, 8, 8, 4]
    )


RECIPE = {"root": "out", "sources": {"clips": {"kind": "clips", "url": "x"}}}


@pytest.mark.parametrize(
    ("scenes", "says"),
    [
        ({"min_seconds": 5, "max_seconds": 4}, "min_seconds .5. must be below max_seconds .4."),
        ({"max_seconds": 400}, "max_seconds: Input should be less than or equal to 300"),
        ({"content_threshold": 20}, "content_threshold is now content"),
        ({"content": {"hue": 0, "saturation": 0, "luma": 0}}, "one of hue, saturation, luma and edges"),
        ({"adaptive": {"width": 2}}, r"scenes\.adaptive\.width: no such key; allowed: threshold, window, min_content"),
    ],
)
def test_recipe_with_scenes_that_cannot_be_is_refused(scenes, says):
    with pytest.raises(RecipeError, match=says):
        check_recipe(RECIPE | {"filter": {"video": {"scenes": scenes}}}, "r.yaml")


def test_recipe_turns_detectors_off_and_on():
    recipe = check_recipe(RECIPE | {"filter": {"video": {"scenes": {"content": None, "adaptive": {}}}}}, "r.yaml")
    scenes = recipe.filter["video"].scenes
    assert scenes.content is None and scenes.adaptive is not None and scenes.fades is not None


def test_recipe_and_settings_have_the_same_defaults():
    from dataclasses import asdict

    given = check_recipe(RECIPE | {"filter": {"video": {}}}, "r.yaml").filter["video"].scenes.model_dump()
    for key in ("short_side_px", "range_seconds", "unit_seconds"):
        del given[key]
    assert given == asdict(SceneSettings())
