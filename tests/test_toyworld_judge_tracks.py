"""Tracks of clips: exact on true frames, a known error of frozen ones, and nothing is won by vanishing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.toyworld.judge_files import motion_score
from benchmarks.toyworld.judge_motion_scores import MotionScore, frozen, score_motions
from benchmarks.toyworld.judge_tracks import RANDOM_PLACES, follow
from benchmarks.toyworld.motion import draw_motion, motion, tracks
from benchmarks.toyworld.world import COLOURS, MOTION_KINDS, SIZE, Motion, MotionKind
from numpy.typing import NDArray

FIRST, FRAMES = 16, 16
MISSING_PX = RANDOM_PLACES * SIZE


def clip(kind: MotionKind, seed: int) -> tuple[Motion, NDArray[np.uint8]]:
    made = motion(2_000_000_000 + seed, kind=kind)
    return made, draw_motion(made, FRAMES, first=FIRST)


def empty(made: Motion) -> NDArray[np.uint8]:
    """The clip without its things: background and bar."""
    away = tuple(replace(one, x=-99.0, vx=0.0, vy=0.0) for one in made.objects)
    return draw_motion(replace(made, kind="straight", objects=away), FRAMES, first=FIRST)


def overall(made: Motion, frames: NDArray[np.uint8]) -> MotionScore:
    return score_motions([made], [frames], FIRST)[0]


@pytest.mark.parametrize("kind", MOTION_KINDS)
def test_tracks_of_true_frames_are_exact(kind: MotionKind) -> None:
    made, drawn = zip(*(clip(kind, seed) for seed in range(3)), strict=True)
    score = score_motions(made, drawn, FIRST)[0]
    assert score.moving is not None
    assert score.moving.median < (0.15 if kind == "occluded" else 0.1)  # half of a thing beside the bar has no centre
    assert score.moving.p90 < (0.5 if kind == "occluded" else 0.2)
    assert score.found is not None
    assert score.found.value > 0.95
    assert score.colour_kept is not None
    assert score.colour_kept.value == 1.0
    assert score.spurious_per_frame == score.junk_per_frame == score.unreadable == 0
    if kind == "occluded":
        assert score.returns is not None
        assert score.returns.value == 1.0
    else:
        assert score.returns is None


def test_tracks_of_a_frozen_frame_are_off_by_the_way_that_was_gone() -> None:
    made, _ = clip("straight", 3)
    (speed,) = {float(np.hypot(one.vx, one.vy)) for one in made.objects if one.vx or one.vy}
    still = frozen(draw_motion(made, FIRST), FRAMES)
    score = overall(made, still)
    assert score.moving is not None
    assert score.frozen is not None
    wanted = [np.median([speed * (lag + 1) for lag in range(start, start + 4)]) for start in range(0, FRAMES, 4)]
    assert score.by_latent_frame == pytest.approx(wanted, abs=0.15)
    assert score.frozen.median == pytest.approx(speed * (FRAMES + 1) / 2)
    assert score.times_better_than_frozen == pytest.approx(1.0, abs=0.05)


def test_tracks_of_a_frozen_frame_behind_a_bar_never_come_out_again() -> None:
    made, _ = clip("occluded", 1)
    score = overall(made, frozen(draw_motion(made, FIRST), FRAMES))
    assert score.returns is not None
    assert score.returns.value == 0.0
    assert score.moving is not None
    assert score.moving.median == pytest.approx(MISSING_PX)
    assert score.frozen is not None
    assert score.frozen.median < 12  # the place it stayed at is known, and a stronger rival than a penalty


def test_tracks_of_a_thing_that_vanishes_lose_permanence_and_pay() -> None:
    made, drawn = clip("bouncing", 2)
    drawn[8:] = empty(made)[8:]
    score = overall(made, drawn)
    assert score.found is not None
    assert score.found.value == pytest.approx(0.5)
    assert score.moving is not None
    assert score.moving.p90 == pytest.approx(MISSING_PX)
    followed = follow(made, drawn, FIRST)
    assert np.nanmax(followed.errors[:8]) < 0.5
    assert np.allclose(followed.errors[8:], MISSING_PX)


def test_tracks_of_a_thing_that_stays_behind_the_bar_do_not_return() -> None:
    made, _ = clip("occluded", 4)
    score = overall(made, empty(made))
    assert score.returns is not None
    assert score.returns.value == 0.0
    assert score.found is not None
    assert score.found.value == 0.0


def test_tracks_of_a_thing_that_comes_out_on_the_wrong_side_do_not_return() -> None:
    """It is found, in its colour, whole: only the place is wrong."""
    made, drawn = clip("occluded", 5)
    mirrored = drawn[:, :, ::-1] if made.objects[0].vx else drawn[:, ::-1]
    score = overall(made, np.ascontiguousarray(mirrored))
    assert score.returns is not None
    assert score.returns.value == 0.0
    assert score.found is not None
    assert score.found.value > 0.8


def test_tracks_of_a_thing_that_changes_colour_in_its_place_are_found_but_lose_their_colour() -> None:
    made, _ = clip("straight", 6)
    names = list(COLOURS)
    other = names[(names.index(made.objects[0].colour) + 1) % len(names)]
    wrong = replace(made, objects=(replace(made.objects[0], colour=other, rgb=COLOURS[other]), *made.objects[1:]))
    score = overall(made, draw_motion(wrong, FRAMES, first=FIRST))
    assert score.found is not None
    assert score.found.value == 1.0
    assert score.colour_kept is not None
    assert score.colour_kept.value == pytest.approx(1 - 1 / len(made.objects))


def test_tracks_of_a_thing_of_another_colour_elsewhere_are_neither_found_nor_overlooked() -> None:
    made = next(one for seed in range(99) if len((one := motion(seed, kind="straight")).objects) == 1)
    names = list(COLOURS)
    other = names[(names.index(made.objects[0].colour) + 1) % len(names)]
    (thing,) = made.objects
    x, y = ((at + 14.0 if at < SIZE / 2 else at - 14.0) for at in (thing.x, thing.y))
    away = replace(thing, y=y) if thing.vx else replace(thing, x=x)
    wrong = replace(made, objects=(replace(away, colour=other, rgb=COLOURS[other]),))
    score = overall(made, draw_motion(wrong, FRAMES, first=FIRST))
    assert score.found is not None
    assert score.found.value == 0.0
    assert score.spurious_per_frame == 1.0


def test_tracks_of_noise_find_nothing_and_say_that_it_is_unreadable() -> None:
    made, drawn = clip("straight", 7)
    noise = np.random.default_rng(1).integers(0, 256, drawn.shape).astype(np.uint8)
    score = overall(made, noise)
    assert score.unreadable == 1.0
    assert score.found is not None
    assert score.found.value == 0.0


def test_tracks_when_hidden_are_not_due_and_a_thing_drawn_over_the_bar_is_spurious() -> None:
    made, drawn = clip("occluded", 8)
    hidden = tracks(made, FRAMES, first=FIRST).visible[:, 0] < 0.1
    assert hidden.any()
    assert not follow(made, drawn, FIRST).due[hidden].any()
    before = draw_motion(replace(made, bar=None), FRAMES, first=FIRST)
    drawn[hidden] = before[hidden]
    assert follow(made, drawn, FIRST).spurious == hidden.sum()


def test_motion_scores_survive_a_file() -> None:
    made, drawn = clip("occluded", 9)
    for score in score_motions([made], [drawn], FIRST):
        assert motion_score(json.loads(json.dumps(score.to_json()))) == score
    json.dumps(follow(made, drawn, FIRST).to_json(), allow_nan=False)


def test_scores_of_clips_without_a_motion_each_are_refused() -> None:
    made, drawn = clip("straight", 0)
    with pytest.raises(ValueError, match="shorter"):
        score_motions([made, made], [drawn], FIRST)
