"""Scorers of pictures on clips: which frames they see, and how what they say of them becomes one value a clip."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from tests.small_scorers import Levels, Stir, StirModel
from tests.tiny import picture

from tokenmill.errors import RunError
from tokenmill.filters.caption_quality import CaptionQuality
from tokenmill.filters.clip import Clip
from tokenmill.filters.clip_frames import FrameChoice, on_clips, reduced_value
from tokenmill.filters.footage import Footage
from tokenmill.filters.resolution import Resolution
from tokenmill.filters.text_coverage import TextCoverage
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decode_video import frames_at_rate


def _clip(*levels: int) -> Clip:
    """Make a clip whose frames have these grey levels, 32 x 48, of a film of 720p."""
    frames = np.stack([np.full((32, 48, 3), level, np.uint8) for level in levels])
    seconds = np.arange(len(levels)) / 2
    return Clip(frames=frames, seconds=seconds, fps=2, duration_s=len(levels) / 2, width_px=1280, height_px=720)


def _scored(clips: list[Clip], scorer=None, **choice):
    scorer = scorer or Levels()
    (called,) = on_clips({scorer.name: scorer}, {scorer.name: FrameChoice(**choice)}).values()
    return called.score([Footage.of(clip) for clip in clips])


@pytest.mark.parametrize(
    ("frames", "num_frames", "numbers"),
    [
        (1, 1, [0]),
        (1, 2, [1]),
        (1, 9, [4]),
        (1, 10, [5]),
        (3, 9, [1, 4, 7]),
        (3, 10, [1, 5, 8]),
        (2, 8, [2, 6]),
        (8, 8, list(range(8))),
        (12, 5, list(range(5))),
        ("all", 5, list(range(5))),
    ],
)
def test_chosen_frames_are_the_middles_of_equal_parts(frames, num_frames, numbers):
    assert FrameChoice(frames=frames).numbers(num_frames) == numbers


def test_frames_at_a_rate_are_never_none():
    times = np.arange(49) / 24  # two seconds
    assert frames_at_rate(times, 0, 48, 2.0).tolist() == [0, 12, 24, 36]
    assert frames_at_rate(times, 10, 13, 2.0).tolist() == [10]
    assert frames_at_rate(times, 47, 48, 2.0).tolist() == [47]


@pytest.mark.parametrize(
    ("values", "kind", "found"),  # by min, max, mean, median
    [
        ([3.0, 1.0, 8.0], pl.Float32(), [1.0, 8.0, 4.0, 3.0]),
        ([3, 1, 9, 9], pl.Int32(), [1, 9, 6, 6]),  # 5.5 and 6: rounded to whole
        ([3.0, None, 5.0], pl.Float32(), [3.0, 5.0, 4.0, 4.0]),
        ([None, None], pl.Float32(), [None] * 4),
        ([True, False, False], pl.Boolean(), [False, True, False, False]),
        ([True, False, True], pl.Boolean(), [False, True, True, True]),
        ([True, False], pl.Boolean(), [False, True, False, False]),
        ([True, True, None], pl.Boolean(), [True, True, True, True]),
        ([None], pl.Boolean(), [None] * 4),
        (["a", "b", "c", "d"], pl.String(), ["c"] * 4),
        ([7, 5, 1], pl.UInt64(), [5] * 4),
        ([[1], [2], [3]], pl.List(pl.Int32()), [[2]] * 4),
        ([[1.0], [2.0]], pl.Array(pl.Float16(), 1), [[2.0]] * 4),
    ],
)
def test_values_of_frames_become_one_by_the_kind_of_their_column(values, kind, found):
    assert [reduced_value(values, kind, reduce) for reduce in ("min", "max", "mean", "median")] == found


@pytest.mark.parametrize("reduce", ["min", "max", "mean", "median"])
def test_frame_whose_score_is_no_number_makes_the_clip_s_none(reduce):
    assert math.isnan(reduced_value([1.0, math.nan, 2.0], pl.Float32(), reduce))


def test_scorer_of_pictures_gives_one_value_a_clip_and_keeps_its_columns():
    clips = [_clip(10, 20, 30), _clip(200), _clip(*range(100, 160, 10))]
    middle = _scored(clips)
    assert middle["level"] == [20.0, 200.0, 130.0]
    lowest = _scored(clips, frames=3, reduce="min")
    assert lowest.keys() == Levels.columns.keys()
    assert lowest["level"] == lowest["level_whole"] == [10.0, 200.0, 110.0]
    assert lowest["level_word"] == ["level 20", "level 200", "level 130"]
    assert lowest["level_hash"] == [20, 200, 130]
    whole = _scored(clips, frames="all", reduce="mean")
    assert whole["level"] == [20.0, 200.0, 125.0]
    assert whole["is_bright"] == [False, True, False], "two of six frames are bright"


def test_frames_of_several_clips_fill_batches_together():
    found = _scored([_clip(10, 20, 30), _clip(40, 50, 60)], frames="all")
    sizes = [size for _, size in found["level_list"]]
    assert sizes == [2, 2], "six frames in three calls of two; one of the second call belongs to each clip"


def test_prepared_scorer_of_pictures_says_the_same_in_halves():
    page = np.asarray(decode_image(picture(3, 128), max_pixels=10**6))
    frames = np.stack([page, page[::-1], np.zeros_like(page)])
    clip = Clip(frames=frames, seconds=np.arange(3) / 2, fps=2, duration_s=1.5, width_px=128, height_px=128)
    (called,) = on_clips({"text": TextCoverage()}, {"text": FrameChoice(frames="all", reduce="max")}).values()
    batch = [Footage.of(clip), Footage.of(_clip(5))]
    assert called.score_prepared(called.prepare(batch)) == called.score(batch)
    assert [len(small) for small in called.prepare(batch)] == [3, 1]


@pytest.mark.parametrize("scorer", [Stir(), StirModel()])
def test_scorer_of_clips_gets_them_whole(scorer):
    clips = [_clip(10, 20, 40), _clip(7)]
    found = _scored(clips, scorer)
    assert found == scorer.score(clips)
    assert next(iter(found.values())) == [15.0, None]


def test_size_of_a_clip_is_its_film_s_and_not_that_of_its_frames():
    assert _scored([_clip(1, 2)], Resolution())["min_side_px"] == [720]
    frame = Footage.of(_clip(1)).picture(0)
    assert (frame.width_px, frame.height_px) == (48, 32), "what is there to see"
    assert (frame.source_width_px, frame.source_height_px) == (1280, 720)
    assert frame.rgb(longest_side_px=600).shape == (32, 48, 3)


def test_scorer_of_captions_needs_no_frame_and_others_may_not_ask_for_forgotten_ones():
    caption = "a red circle moves to the right"
    unseen = Footage(None, caption=caption)
    (called,) = on_clips({"caption_quality": CaptionQuality()}, {}).values()
    assert called.score([unseen])["caption_words"] == [7]
    footage = Footage.of(_clip(1))
    footage.forget()
    with pytest.raises(RunError, match="not to look"):
        footage.picture(0)


def test_scorer_that_says_too_much_of_a_frame_is_named():
    class Odd(Levels):
        def score(self, batch):
            return {**super().score(batch), "level": [1.0]}

    with pytest.raises(RunError, match="scorer 'levels': 1 values of 'level' for 2 samples"):
        _scored([_clip(1, 2)], Odd(), frames="all")
