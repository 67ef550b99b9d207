"""Scorers of clips: black and blank frames, bars, the hash of a clip; any size, golden values for each version."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.moving import clip_of, pan, photograph, window

from tokenmill.demo.scenes import motion, render_motion
from tokenmill.filters.clip import Clip
from tokenmill.filters.scorer import build_scorer

SCORERS = ("motion", "black", "letterbox", "clip_hash")  # those that need no weights
# What (scorer, version) gives for `golden_clip`. A change without a new version is a mistake.
GOLDEN = {
    ("motion", 1): {
        "motion": 0.0418133,
        "motion_min": 0.00246463,
        "motion_max": 0.0668218,
        "static_share": 0.2,
        "camera_shake": 0.0327341,
    },
    ("black", 1): {"black_share": 0.333333, "blank_share": 0.333333},
    ("letterbox", 1): {
        "content_left_px": 0,
        "content_top_px": 32,
        "content_width_px": 455,
        "content_height_px": 192,
        "content_share": 0.75,
    },
    ("clip_hash", 1): {"phash": 4996868920478161987},
}


def score(name, clip, **settings):
    """Score one clip; returns its value, or its values by column."""
    values = {column: value for column, (value,) in build_scorer(name, settings).score([clip]).items()}
    return next(iter(values.values())) if len(values) == 1 else values


def golden_clip():
    """A pan in letterbox between black frames, all by whole pixels."""
    image = photograph("coffee")
    frames = np.zeros((6, 256, 455, 3), np.uint8)
    for number in range(1, 5):
        frames[number, 32:224] = image[40 : 40 + 192, 40 + 12 * number : 40 + 12 * number + 455]
    return clip_of(frames)


@pytest.mark.parametrize("name", SCORERS)
def test_video_scorer_of_this_version_gives_its_golden_values(name):
    scorer = build_scorer(name)
    values = {column: value for column, (value,) in scorer.score([golden_clip()]).items()}
    assert values == {
        column: pytest.approx(value, rel=1e-2) if isinstance(value, float) else value
        for column, value in GOLDEN[name, scorer.version].items()
    }


@pytest.mark.parametrize("name", SCORERS)
def test_video_scorer_fills_its_columns_whoever_is_in_its_batch(name):
    clips = [golden_clip(), pan("china", 0.1, num_frames=1), clip_of(np.zeros((3, 40, 30, 3), np.uint8))]
    scorer = build_scorer(name)
    assert scorer.takes == "video"
    table = pl.DataFrame(dict(scorer.score(clips)), schema=dict(scorer.columns), strict=True)
    alone = [pl.DataFrame(dict(scorer.score([clip])), schema=dict(scorer.columns)) for clip in clips]
    assert table.equals(pl.concat(alone))


@given(
    st.sampled_from(SCORERS),
    st.integers(1, 4),
    st.integers(1, 90),
    st.integers(1, 90),
    st.booleans(),
    st.integers(0, 9),
)
def test_video_scorer_takes_clips_of_any_shape(name, num_frames, height, width, is_noise, seed):
    random = np.random.default_rng(seed)
    low, high = (0, 256) if is_noise else (0, 1 + 28 * seed)
    frames = random.integers(low, high, (num_frames, height, width, 3), dtype=np.uint8)
    scorer = build_scorer(name)
    table = pl.DataFrame(dict(scorer.score([clip_of(frames)])), schema=dict(scorer.columns), strict=True)
    assert all(value is None or np.isfinite(value) for value in table.row(0))


# --- black


def test_black_and_blank_shares_of_a_clip_are_of_its_frames():
    picture = window(photograph("china"), (40, 40))
    white = np.full_like(picture, 250)
    frames = np.stack([np.zeros_like(picture), white, picture, picture])
    assert score("black", clip_of(frames)) == {"black_share": 0.25, "blank_share": 0.5}
    assert score("black", clip_of(frames[:1])) == {"black_share": 1, "blank_share": 1}


def test_black_overlooks_noise_and_knows_night_from_nothing():
    noise = np.random.default_rng(0).normal(4, 4, (256, 455, 3)).clip(0, 255).astype(np.uint8)
    grey_wall = np.random.default_rng(1).normal(128, 6, (256, 455, 3)).clip(0, 255).astype(np.uint8)
    assert score("black", clip_of(noise[None])) == {"black_share": 1, "blank_share": 1}
    assert score("black", clip_of(grey_wall[None])) == {"black_share": 0, "blank_share": 1}
    for name in ("chelsea", "china", "coffee"):
        assert score("black", night(name, 0.15)) == {"black_share": 0, "blank_share": 0}
    lamp = noise.copy()
    cv2.circle(lamp, (200, 100), 30, (255, 240, 200), -1)  # 2.4 % of the picture
    assert score("black", clip_of(lamp[None])) == {"black_share": 0, "blank_share": 0}


def test_black_of_limited_range_taken_for_full_range_is_black():
    assert score("black", clip_of(np.full((1, 90, 160, 3), 16, np.uint8)))["black_share"] == 1


def night(name, brightness):
    """Take a photograph for one of the night: most of it is darker than what bars may be."""
    frames = pan(name, 0.02).frames
    return clip_of((brightness * 255 * (frames / 255.0) ** 1.5).astype(np.uint8))


# --- letterbox


def barred(frames, top=0, bottom=0, left=0, right=0, level=0):
    return np.pad(frames, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=level)


def box(clip, **settings):
    return tuple(score("letterbox", clip, **settings).values())


@pytest.mark.parametrize("name", ["coffee", "china", "rocket", "astronaut"])
@pytest.mark.parametrize("level", [0, 8, 16])
def test_letterbox_is_found_to_the_pixel(name, level):
    frames = pan(name, 0.02).frames
    assert box(clip_of(frames)) == (0, 0, 455, 256, 1)
    wide = clip_of(barred(frames[:, 32:224], top=32, bottom=32, level=level))
    assert box(wide) == (0, 32, 455, 192, 0.75)
    pillar = clip_of(barred(frames[:, :, 57:398], left=57, right=57, level=level))
    assert box(pillar) == (57, 0, 341, 256, pytest.approx(341 / 455))
    both = clip_of(barred(frames[:, 40:216, 80:376], 40, 40, 80, 79, level=level))
    assert box(both) == (80, 40, 296, 176, pytest.approx(296 * 176 / 455 / 256))


@pytest.mark.parametrize("source", [(1280, 720), (1920, 1080), (640, 480), (1080, 1920)])
def test_letterbox_is_told_in_pixels_of_the_source_within_one_of_the_frames(source):
    width, height = source
    content = photograph("china")[: int(height * 0.8) if height < 800 else 600]
    bar = height // 9
    frame = np.zeros((height, width, 3), np.uint8)
    frame[bar : height - bar] = cv2.resize(content, (width, height - 2 * bar), interpolation=cv2.INTER_AREA)
    scale = Fraction(256, min(source))
    small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    frames = np.stack([small, small])
    clip = Clip(
        frames=frames, seconds=np.array([0, 0.5]), fps=2, duration_s=1, width_px=width, height_px=height
    )  # fmt: skip
    left, top, wide, high, share = box(clip)
    pixel = float(1 / scale)
    assert (left, wide) == (0, width)
    assert abs(top - bar) <= pixel and abs(high - (height - 2 * bar)) <= 2 * pixel
    assert share == pytest.approx((height - 2 * bar) / height, abs=0.01)


@pytest.mark.parametrize("name", ["rocket", "china", "coffee", "astronaut", "chelsea", "flower"])
@pytest.mark.parametrize("brightness", [0.08, 0.15, 0.3])
def test_letterbox_of_dark_scenes_is_the_whole_frame(name, brightness):
    found = box(night(name, brightness))
    assert found in {(0, 0, 455, 256, 1), (None,) * 5}


def test_letterbox_of_bright_sky_over_black_sea_and_of_a_spot_in_the_dark_is_the_whole_frame():
    sea = window(photograph("china"), (40, 40)).copy()
    sea[150:] = 3
    assert box(clip_of(sea[None])) == (0, 0, 455, 256, 1)
    moon = np.zeros((256, 455, 3), np.uint8)
    cv2.circle(moon, (230, 120), 40, (220, 220, 210), -1)
    assert box(clip_of(moon[None])) == (0, 0, 455, 256, 1)


def test_letterbox_of_a_dark_scene_inside_bars_is_that_of_its_brighter_edge():
    frames = pan("china", 0.02).frames[:, 32:224].copy()
    frames[:, 150:] = 2  # the lower part of the picture is black too
    assert box(clip_of(barred(frames, top=32, bottom=32))) == (0, 32, 455, 192, 0.75)


def test_bars_have_to_stand_in_every_frame():
    frames = pan("coffee", 0.02).frames
    opening = barred(frames[:1, 32:224], top=32, bottom=32)
    assert box(clip_of(np.concatenate([opening, frames]))) == (0, 0, 455, 256, 1)
    assert box(clip_of(np.concatenate([np.zeros_like(opening), opening, opening]))) == (0, 32, 455, 192, 0.75)


def test_letterbox_of_black_clips_is_null():
    assert box(clip_of(np.zeros((3, 256, 455, 3), np.uint8))) == (None,) * 5


# --- clip_hash


def distance(first, second):
    return (score("clip_hash", first) ^ score("clip_hash", second)).bit_count()


def sampled(film, fps, size=(455, 256), change=lambda frame: frame):
    """Sample 2 frames a second of a film, scaled, with something done to each."""
    places = [int(n * fps / 2 + 1e-6) for n in range(max(1, int(len(film) / fps * 2)))]
    small = np.stack([change(cv2.resize(film[place], size, interpolation=cv2.INTER_AREA)) for place in places])
    return replace(clip_of(small, seconds=np.array(places) / fps), duration_s=len(film) / fps)


@pytest.fixture(scope="module")
def films():
    """Three seconds each of pans, a still, and scenes in motion; 24 frames a second."""
    names = ("china", "coffee", "rocket", "astronaut")
    pans = [pan(name, 0.006, num_frames=72, angle=30 * number).frames for number, name in enumerate(names)]
    return [*pans, pans[0][[0] * 72], *(render_motion(motion(seed), 72, 64) for seed in range(4))]


def noisy(frame):
    return (frame + np.random.default_rng(frame[0, 0, 0]).normal(0, 5, frame.shape)).clip(0, 255).astype(np.uint8)


def poorly_coded(frame):
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)


def test_clip_hash_of_near_copies_is_near(films):
    for film in films:
        original = sampled(film, 24)
        copies = [
            sampled(film, 24, size=(160, 120)),
            sampled(film[::2], 12),
            sampled(np.repeat(film, 2, axis=0), 48),
            sampled(film, 24, change=noisy),
            sampled(film, 24, change=poorly_coded),
            sampled(film, 24, change=lambda frame: cv2.convertScaleAbs(frame, alpha=0.9, beta=15)),
        ]
        distances = [distance(original, copy) for copy in copies]
        assert max(distances) <= 4 and np.mean(distances) <= 1.5


def test_clip_hash_of_clips_shorter_by_two_frames_is_near(films):
    for film in films:
        assert distance(sampled(film, 24), sampled(film[2:], 24)) <= 6
        assert distance(sampled(film, 24), sampled(film[:-2], 24)) <= 6


def test_clip_hash_of_other_clips_is_far(films):
    hashes = [score("clip_hash", sampled(film, 24)) for film in films]
    others = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 6 and np.median(others) > 20


def test_clip_hash_tells_directions_apart_and_knows_a_still():
    there = pan("china", 0.03, num_frames=10).frames
    assert distance(clip_of(there), clip_of(there[::-1])) > 6
    still = clip_of(there[[0] * 10])
    assert distance(still, clip_of(there[:1])) == 0
    assert distance(still, clip_of(there)) > 4


def test_clip_hash_of_clips_without_structure_is_null():
    grey = np.full((4, 90, 120, 3), 90, np.uint8)
    assert score("clip_hash", clip_of(grey)) is None
    assert score("clip_hash", clip_of(np.zeros_like(grey))) is None


def test_clip_hash_is_what_stage_duplicates_compares(films):
    from tokenmill.filters.near_hashes import hash_leaders
    from tokenmill.pipelines.compare_read import PHASH

    scorer = build_scorer("clip_hash")
    assert dict(scorer.columns) == {PHASH: pl.UInt64()}
    clips = [sampled(film, 24) for film in films[:3]] + [sampled(film[::2], 12) for film in films[:3]]
    hashes = pl.Series(scorer.score(clips)[PHASH], dtype=pl.UInt64).to_numpy()
    assert hash_leaders(hashes, max_distance=4).tolist() == [0, 1, 2, 0, 1, 2]
