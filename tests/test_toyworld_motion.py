"""Toy clips: where the pixels are is where the physics says, before, behind and after whatever happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.toyworld.captions import clip_captions
from benchmarks.toyworld.exams import clip_exam
from benchmarks.toyworld.motion import bounces, draw_motion, motion, position, tracks
from benchmarks.toyworld.questions import clip_questions
from benchmarks.toyworld.scenes import HELDOUT_SEEDS
from benchmarks.toyworld.world import MOTION_KINDS, Motion, Mover, QuestionKind
from numpy.typing import NDArray
from tests.toyworld_reading import answer_to, is_true_of_clip, shares

CLIPS = [motion(seed) for seed in range(600)]


def of_kind(kind: str, count: int) -> list[Motion]:
    return [made for made in CLIPS if made.kind == kind][:count]


def coloured(made: Motion, num_frames: int, first: int = 0, number: int = 0) -> NDArray[np.float64]:
    """Return how much of each pixel of a clip is one of its things, from the difference that the thing makes."""
    thing = made.objects[number]
    others = tuple(replace(one, x=-99.0, vx=0.0) if one is thing else one for one in made.objects)
    without = replace(made, kind="straight", objects=others)
    drawn = draw_motion(made, num_frames, first).astype(float) - draw_motion(without, num_frames, first)
    strength: NDArray[np.float64] = np.abs(drawn).sum(axis=3)
    return strength / max(1.0, float(strength.max()))


def middles(shown: NDArray[np.float64], thing: Mover) -> NDArray[np.float64]:
    """Return the centres of what is shown frame by frame, x and y in pixels; of a triangle that of its box."""
    at = np.arange(32) + 0.5
    total = shown.sum(axis=(1, 2))
    x, y = (shown.sum(axis=1) * at).sum(axis=1) / total, (shown.sum(axis=2) * at).sum(axis=1) / total
    # the triangle's centre of mass lies a third above its lower edge: 0.85 - 1.8 / 3 radii below the middle
    return np.stack([x, y - (thing.radius * 0.25 if thing.shape == "triangle" else 0)], axis=1)


@pytest.mark.parametrize("kind", ["straight", "bouncing"])
def test_pixels_are_where_the_tracks_say(kind: str) -> None:
    for made in of_kind(kind, 8):
        for number, thing in enumerate(made.objects):
            found = middles(coloured(made, 32, number=number), thing)
            assert np.abs(found - tracks(made, 32).centres[:, number]).max() < 0.2


def test_pixels_are_where_the_tracks_say_long_after_the_written_clip() -> None:
    for made in of_kind("bouncing", 5):
        found = middles(coloured(made, 12, first=500), made.objects[0])
        assert np.abs(found - tracks(made, 12, first=500).centres[:, 0]).max() < 0.2


def test_part_of_a_clip_is_the_same_pixels() -> None:
    for made in CLIPS[:6]:
        assert np.array_equal(draw_motion(made, 40)[30:], draw_motion(made, 10, first=30))
        assert draw_motion(made, 3).shape == (3, 32, 32, 3)


def test_bouncing_agrees_with_small_steps_thrown_back_at_the_edges() -> None:
    for made in of_kind("bouncing", 20):
        (thing,) = made.objects
        place, velocity = np.array([thing.x, thing.y]), np.array([thing.vx, thing.vy])
        steps = 64
        for step in range(1, 80 * steps + 1):
            place = place + velocity / steps
            for axis in range(2):
                low, high = thing.radius, 32 - thing.radius
                if not low <= place[axis] <= high:
                    place[axis] = 2 * (low if place[axis] < low else high) - place[axis]
                    velocity[axis] = -velocity[axis]
            if step % (7 * steps + 13) == 0:
                assert np.allclose(position(made, step / steps)[0], place, atol=1e-6)


def test_bounces_are_when_a_thing_touches_an_edge_and_turns() -> None:
    for made in of_kind("bouncing", 40):
        (thing,) = made.objects
        times = bounces(made)
        assert times
        for time in times:
            before, at, after = (position(made, time + by)[0] for by in (-0.01, 0.0, 0.01))
            touched = np.isclose(at, thing.radius, atol=1e-9) | np.isclose(at, 32 - thing.radius, atol=1e-9)
            assert touched.any()
            assert time <= 31
            assert ((at - before)[touched] * (after - at)[touched] < 0).all()


def test_bouncing_keeps_its_speed() -> None:
    for made in of_kind("bouncing", 20):
        (thing,) = made.objects
        fine = np.stack([position(made, 40 + step / 1000)[0] for step in range(400)])
        speeds = np.abs(np.diff(fine, axis=0)) * 1000
        assert np.allclose(np.median(speeds, axis=0), np.abs([thing.vx, thing.vy]), rtol=1e-6, atol=1e-9)


def test_occluded_thing_vanishes_behind_the_bar_and_comes_out_again() -> None:
    for made in of_kind("occluded", 30):
        seen = tracks(made, 32).visible[:, 0]
        shown = coloured(made, 32).sum(axis=(1, 2))
        assert seen[[0, 31]] == pytest.approx(1)
        assert 10 < int(np.argmin(seen)) < 21
        assert seen.min() == 0
        assert (shown[seen == 0] < 1e-9).all()
        of_box = np.abs(shown / shown[0] - seen)  # a triangle's share is not quite that of the box around it
        assert of_box[seen < 1].max() < 0.3
        hidden = int(np.argmin(seen))
        assert (np.diff(seen[: hidden + 1]) < 1e-9).all()
        assert (np.diff(seen[hidden:]) > -1e-9).all()


def test_occluded_thing_is_where_the_tracks_say_on_either_side() -> None:
    for made in of_kind("occluded", 12):
        (thing,) = made.objects
        found, told = middles(coloured(made, 32)[[0, 31]], thing), tracks(made, 32).centres[[0, 31], 0]
        assert np.abs(found - told).max() < 0.2


def test_thing_that_goes_straight_on_leaves_the_picture_for_good() -> None:
    for made in of_kind("straight", 40):
        seen = tracks(made, 200).visible
        assert (seen[:32] > 0.999).all()
        assert seen[-1, 0] == 0
        assert (seen[:, 1:] > 0.999).all()


def test_clips_are_functions_of_their_seeds_and_of_each_kind_as_often() -> None:
    assert motion(5) == motion(5)
    counts = Counter(made.kind for made in CLIPS)
    assert set(counts) == set(MOTION_KINDS)
    assert max(counts.values()) < 1.3 * min(counts.values())
    assert all(motion(seed, kind=kind).kind == kind for kind in MOTION_KINDS for seed in range(3))
    speeds = [max(abs(made.objects[0].vx), abs(made.objects[0].vy)) for made in CLIPS]
    assert min(speeds) >= 0.5
    assert max(speeds) <= 1.0


def test_captions_of_clips_are_true_and_several() -> None:
    for made in CLIPS + [motion(seed, unseen=True) for seed in range(100)]:
        places = [(float(x), float(y)) for x, y in tracks(made, 32).centres[:, 0]]
        texts = clip_captions(made)
        assert 4 <= len(set(texts)) == len(texts) <= 8
        assert all(is_true_of_clip(text, made, places) for text in texts), made


def test_questions_about_clips_are_answered_truly_and_balanced() -> None:
    asked = []
    for made in (*CLIPS, *(motion(seed) for seed in range(1_000, 1_600))):
        for one in clip_questions(made):
            assert one.answer == _answer(one.text, made), (one, made)
            asked.append((one.form if one.kind == "motion" else one.kind, one.answer))
    chances = {"way": 1 / 4, "bounce": 1 / 2, "yes_no": 1 / 2}
    counted = shares(asked)
    assert set(counted) == set(chances)
    for kind, counts in counted.items():
        assert counts.most_common(1)[0][1] / counts.total() < chances[kind] + 0.08, kind


@pytest.mark.parametrize("kind", ["yes_no", "colour", "motion"])
@pytest.mark.parametrize("unseen", [False, True])
def test_clip_exam_answers_are_true_balanced_and_held_out(kind: QuestionKind, unseen: bool) -> None:
    found = clip_exam(kind, 30, unseen=unseen)
    for made, question in found:
        assert made.seed >= HELDOUT_SEEDS
        assert question.answer == _answer(question.text, made)
        assert question.unseen == unseen
    for counts in shares([(question.form, question.answer) for _, question in found]).values():
        assert max(counts.values()) == min(counts.values())


def _answer(text: str, made: Motion) -> str:
    """Answer from how the first thing moves between frames."""
    steps = np.diff(tracks(made, 32).centres[:, 0], axis=0)
    turned = (np.abs(np.diff(np.sign(np.round(steps, 9)), axis=0)) > 0).any()
    if "bounce" in text:
        return "yes" if turned else "no"
    if "which way" in text or " go?" in text:
        assert not turned
        x, y = steps[0]
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    return answer_to(text, made)
