"""Toy scenes: pictures show what the description says, and every caption, prompt and answer is true of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest
from benchmarks.toyworld.captions import captions
from benchmarks.toyworld.exams import exam
from benchmarks.toyworld.prompts import prompts
from benchmarks.toyworld.questions import questions
from benchmarks.toyworld.scenes import HELDOUT_SEEDS, draw, scene
from benchmarks.toyworld.world import BACKGROUNDS, COLOURS, PROMPT_KINDS, SHAPES, PromptKind, QuestionKind
from numpy.typing import NDArray
from tests.toyworld_reading import answer_to, is_true, sentence, shares, stands

from tokenmill.demo.world import Scene, Thing

SCENES = [scene(seed) for seed in range(2_000)]
UNSEEN = [scene(seed, unseen=True) for seed in range(400)]
INSIDE = {  # of a shape of radius 1 around 0, 0; y downwards
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.85,
    "triangle": lambda x, y: (y <= 0.85) & (np.abs(x) <= (y + 0.95) / 1.8),
}


def mask(shape: str, thing: Thing) -> NDArray[np.float64]:
    """Return how much of each pixel a shape at a thing's place covers, by 8 x 8 points."""
    points = (np.arange(32 * 8) + 0.5) / (32 * 8)
    x, y = (points[None, :] - thing.x) / thing.radius, (points[:, None] - thing.y) / thing.radius
    covered: NDArray[np.float64] = INSIDE[shape](x, y).reshape(32, 8, 32, 8).mean(axis=(1, 3))
    return covered


def blobs(pixels: NDArray[np.uint8], made: Scene) -> Iterator[tuple[str, float, float]]:
    """Segment a picture: colour and centre of the box (in pixels) of each area unlike the background."""
    ground = draw(replace(made, objects=())).astype(int)
    unlike = (np.abs(pixels.astype(int) - ground).max(axis=2) > 24).astype(np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(unlike, connectivity=8)
    for label in range(1, count):
        mean = np.median(pixels[labels == label], axis=0)
        colour = min(COLOURS, key=lambda name: float(np.linalg.norm(mean - np.array(COLOURS[name]))))
        x, y, width, height, _ = boxes[label]
        yield colour, x + width / 2, y + height / 2


def test_scene_is_a_function_of_its_seed() -> None:
    assert all(np.array_equal(draw(scene(seed)), draw(scene(seed))) for seed in range(5))
    assert len({draw(made).tobytes() for made in SCENES[:200]}) == 200
    assert draw(SCENES[0]).shape == (32, 32, 3)


def test_picture_shows_the_things_of_its_description() -> None:
    for made in SCENES[:300] + UNSEEN[:50]:
        pixels, left = draw(made), list(made.objects)
        found = list(blobs(pixels, made))
        assert len(found) == len(made.objects), made
        for colour, x, y in found:
            thing = min(left, key=lambda one: (one.x * 32 - x) ** 2 + (one.y * 32 - y) ** 2)
            left.remove(thing)
            assert max(abs(thing.x * 32 - x), abs(thing.y * 32 - y)) < 1
            assert colour == thing.colour


def test_picture_shows_each_shape_at_its_place_to_a_quarter_of_a_pixel() -> None:
    for made in SCENES[:150] + UNSEEN[:50]:
        ground, pixels = draw(replace(made, objects=())).astype(float), draw(made).astype(float)
        wrong = {
            shape: sum(_off(pixels, ground, mask(shape, thing), thing) for thing in made.objects) for shape in SHAPES
        }
        true = {thing.shape for thing in made.objects}
        if len(true) == 1:
            assert min(wrong, key=lambda shape: wrong[shape]) == made.objects[0].shape
        expected = ground
        for thing in made.objects:
            covered = mask(thing.shape, thing)[..., None]
            expected = expected * (1 - covered) + np.array(thing.rgb) * covered
        assert np.abs(expected - pixels).mean() < 1 + 0.75 * len(made.objects)  # edges are an eighth of a pixel off
        assert np.abs(expected - pixels).max() < 255 * 0.4


def _off(pixels: NDArray[np.float64], ground: NDArray[np.float64], covered: NDArray[np.float64], thing: Thing) -> float:
    """Say how far a picture is, within a thing's box, from one with that shape there."""
    expected = ground * (1 - covered[..., None]) + np.array(thing.rgb) * covered[..., None]
    near = [
        slice(max(0, round((at - thing.radius) * 32) - 1), round((at + thing.radius) * 32) + 1)
        for at in (thing.y, thing.x)
    ]
    return float(np.abs(expected - pixels)[near[0], near[1]].mean())


def test_picture_has_noise_everywhere_and_a_named_background() -> None:
    for made in SCENES[:60]:
        corner = draw(replace(made, objects=())).astype(float)
        assert 2 < np.diff(corner, axis=1).std() / np.sqrt(2) < 4
        nearest = min(BACKGROUNDS, key=lambda name: float(np.abs(corner.mean((0, 1)) - BACKGROUNDS[name]).sum()))
        assert nearest == made.background


def test_kinds_counts_relations_and_looks_are_balanced() -> None:
    kinds = Counter(made.kind for made in SCENES)
    assert {kind: round(kinds[kind] / len(SCENES), 1) for kind in ("single", "group", "pair", "mixed")} in (
        {"single": 0.4, "group": 0.2, "pair": 0.3, "mixed": 0.1},
        {"single": 0.3, "group": 0.3, "pair": 0.3, "mixed": 0.1},
        {"single": 0.4, "group": 0.3, "pair": 0.3, "mixed": 0.1},
    )
    first = [made.objects[0] for made in SCENES]
    counted = (
        Counter(len(made.objects) for made in SCENES if made.kind == "group"),
        Counter(thing.colour for thing in first),
        Counter(thing.shape for thing in first),
        Counter(
            word for made in SCENES if made.kind == "pair" for word in ("left of", "right of", "above", "below")
            if stands(made.objects[0], word, made.objects[1])
        ),
    )  # fmt: skip
    for counts in counted:
        assert max(counts.values()) < 1.4 * min(counts.values())


def test_captions_are_true_and_several() -> None:
    for made in SCENES + UNSEEN:
        texts = captions(made)
        assert 4 <= len(set(texts)) == len(texts) <= 8
        assert all(is_true(text, made) for text in texts), made


def test_captions_of_other_scenes_are_mostly_false() -> None:
    others = SCENES[1:] + SCENES[:1]
    true = [is_true(captions(other)[0], made) for made, other in zip(SCENES, others, strict=True)]
    assert 0 < sum(true) < 0.05 * len(true)


def test_captions_have_few_words_and_meet_in_all_frames() -> None:
    texts = [text for made in SCENES for text in captions(made)]
    assert len({word for text in texts for word in text.replace(",", "").split()}) < 50
    assert max(map(len, texts)) <= 80
    frames = Counter(
        text.replace("a red circle", "IT") for text in texts if "a red circle" in text and " and " not in text
    )
    assert len([frame for frame in frames if frame.count(" ") < 8 and "IT" in frame]) > 10


def test_questions_are_answered_truly_and_twice_the_same() -> None:
    for made in SCENES:
        asked = questions(made, 5)
        assert asked == questions(made, 5)
        assert len({one.text for one in asked}) == len(asked) >= 4
        assert len(questions(made)) == 2
        for one in asked:
            assert one.answer == answer_to(one.text, made), (one, made)
            assert len(one.answer.split()) <= 2


def test_questions_no_constant_answer_beats_chance() -> None:
    asked = [one for made in SCENES for one in questions(made)]
    chances = {"yes_no": 1 / 2, "counting": 1 / 4, "colour": 1 / 5, "where": 1 / 4, "is": 1 / 2}
    keyed = [(one.form if one.kind == "relation" else one.kind, one.answer) for one in asked]
    for kind, counts in shares(keyed).items():
        assert counts.most_common(1)[0][1] / counts.total() < chances[kind] + 0.06, kind
    by_text = shares([(one.text, one.answer) for one in asked if one.kind == "yes_no"])
    likeliest = sum(counts.most_common(1)[0][1] for counts in by_text.values())
    assert likeliest < 0.58 * sum(counts.total() for counts in by_text.values())


@pytest.mark.parametrize("kind", ["yes_no", "counting", "colour", "relation"])
@pytest.mark.parametrize("unseen", [False, True])
def test_exam_answers_are_true_balanced_and_held_out(kind: QuestionKind, unseen: bool) -> None:
    count = 50 if kind == "colour" and not unseen else 48  # each answer equally often
    found = exam(kind, count, unseen=unseen)
    assert found[:12] == exam(kind, 12, unseen=unseen)
    assert len({made.seed for made, _ in found}) == count
    for made, question in found:
        assert made.seed >= HELDOUT_SEEDS
        assert question.answer == answer_to(question.text, made)
        assert (question.kind, question.unseen) == (kind, unseen)
    for counts in shares([(question.form, question.answer) for _, question in found]).values():
        assert max(counts.values()) == min(counts.values())


def test_exam_refuses_questions_about_motion() -> None:
    with pytest.raises(ValueError, match="clip_exam"):
        exam("motion", 3)


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_prompts_say_what_is_wanted_in_the_words_of_captions(kind: PromptKind) -> None:
    known = {word for made in SCENES + UNSEEN for text in captions(made) for word in text.split()}
    found = prompts(kind, 60)
    assert found[:7] == prompts(kind, 7)
    for prompt in found:
        said = sentence(prompt.text)
        assert [(one.count, one.shape, one.colour) for one in said.named] == [
            (one.count, one.shape, one.colour) for one in prompt.wanted
        ]
        assert (said.relation, said.ground) == (prompt.relation, prompt.background)
        assert set(prompt.text.split()) <= known


def test_prompts_of_each_kind_name_what_genevals_do() -> None:
    shapes = {kind: [[one.shape for one in prompt.wanted] for prompt in prompts(kind, 60)] for kind in PROMPT_KINDS}
    named = {kind: [one for prompt in prompts(kind, 60) for one in prompt.wanted] for kind in PROMPT_KINDS}
    for kind in ("single_object", "two_objects", "position"):
        assert all(one.colour is None and one.count == 1 for one in named[kind])
    assert {one.count for one in named["counting"]} == {2, 3, 4}
    assert all(one.colour for kind in ("colours", "colour_attribution") for one in named[kind])
    assert {len(pair) for kind in ("two_objects", "position", "colour_attribution") for pair in shapes[kind]} == {2}
    assert {one.shape for one in named["single_object"]} == set(SHAPES)
    assert all(prompt.relation for prompt in prompts("position", 60))
    assert all(len({one.colour for one in prompt.wanted}) == 2 for prompt in prompts("colour_attribution", 60))
