"""Some combinations never occur in training: not in pictures, clips, captions or questions; all others do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest
from benchmarks.toyworld.captions import captions, clip_captions
from benchmarks.toyworld.motion import motion
from benchmarks.toyworld.prompts import prompts
from benchmarks.toyworld.questions import clip_questions, questions
from benchmarks.toyworld.scenes import scene
from benchmarks.toyworld.splits import UNSEEN_COUNTS, UNSEEN_LOOKS, UNSEEN_RELATIONS, combinations, is_unseen
from benchmarks.toyworld.world import COLOURS, SHAPES, Motion, PromptKind
from tests.toyworld_reading import sentence, stands

from tokenmill.demo.world import Scene

SCENES = [scene(seed) for seed in range(10_000)]
CLIPS = [motion(seed) for seed in range(1_500)]
Fact = tuple[str, object, str]


def facts(made: Scene | Motion) -> Iterator[Fact]:
    """Yield what there is in a scene, counted from its things: looks, relations from both sides, counts."""
    for thing in made.objects:
        yield "look", thing.colour, thing.shape
    if isinstance(made, Scene) and made.kind == "group":
        yield "count", len(made.objects), made.objects[0].shape
        yield "count", len(made.objects), made.objects[0].colour
    if isinstance(made, Scene) and made.kind in ("pair", "mixed"):
        for one, other in (made.objects, made.objects[::-1]):
            yield from (
                (one.shape, where, other.shape)
                for where in ("left of", "right of", "above", "below")
                if stands(one, where, other)
            )


NEVER = (
    {("look", *look) for look in UNSEEN_LOOKS}
    | {("count", *counted) for counted in UNSEEN_COUNTS}
    | set(UNSEEN_RELATIONS)
)


def test_ten_thousand_training_scenes_have_no_unseen_combination() -> None:
    found = Counter(fact for made in SCENES for fact in facts(made))
    assert not NEVER & set(found)
    assert not any(map(is_unseen, SCENES))


def test_training_clips_have_no_unseen_combination() -> None:
    assert not NEVER & {fact for made in CLIPS for fact in facts(made)}
    assert not any(map(is_unseen, CLIPS))


def test_everything_else_does_occur_in_training() -> None:
    found = {fact for made in SCENES for fact in facts(made)}
    looks = {("look", colour, shape) for colour in COLOURS for shape in SHAPES}
    counts = {("count", count, what) for count in (2, 3, 4) for what in (*COLOURS, *SHAPES)}
    related = {(a, where, b) for a, b in itertools.permutations(SHAPES, 2) for where in ("left of", "above")}
    assert (looks | counts | related) - found == NEVER
    assert {fact for made in CLIPS for fact in facts(made)} == looks - NEVER


def test_unseen_scenes_and_clips_each_have_an_unseen_combination() -> None:
    made = [scene(seed, unseen=True) for seed in range(300)]
    assert all(NEVER & set(facts(one)) for one in made)
    assert all(map(is_unseen, made))
    assert all(fact in {f for one in made for f in facts(one)} for fact in NEVER)
    assert all(NEVER & set(facts(motion(seed, unseen=True))) for seed in range(100))


def test_combinations_are_the_same_from_whichever_side_a_relation_is_told() -> None:
    for made in SCENES[:500]:
        turned = Scene(
            seed=made.seed, kind=made.kind, background=made.background, corners=made.corners, objects=made.objects[::-1]
        )
        assert combinations(made) == combinations(turned)


def test_training_words_never_name_an_unseen_look() -> None:
    names = [f"{colour} {shape}" for colour, shape in UNSEEN_LOOKS]
    texts = [text for made in SCENES[:4_000] for text in captions(made)]
    texts += [text for made in CLIPS for text in clip_captions(made)]
    texts += [one.text for made in SCENES[:4_000] for one in questions(made, 5)]
    texts += [one.text for made in CLIPS for one in clip_questions(made, 5)]
    assert not [text for text in texts if any(name in text for name in names)]


def test_training_questions_never_ask_for_an_unseen_relation_even_to_deny_it() -> None:
    opposite = {"left of": "right of", "above": "below"}
    asked = {one.text for made in SCENES for one in questions(made, 5)}
    for first, where, second in UNSEEN_RELATIONS:
        assert f"is the {first} {where} the {second}?" not in asked
        assert f"is the {second} {opposite[where]} the {first}?" not in asked
        assert f"is the {second} {where} the {first}?" in asked


@pytest.mark.parametrize("kind", ["counting", "colours", "position", "colour_attribution"])
def test_prompts_are_seen_or_unseen_as_asked(kind: PromptKind) -> None:
    trained: set[tuple[str, object, str | None]] = {fact for made in SCENES for fact in facts(made)}
    for unseen in (False, True):
        for prompt in prompts(kind, 80, unseen=unseen):
            assert prompt.unseen == unseen
            named = sentence(prompt.text).named
            claims: set[tuple[str, object, str | None]] = {
                ("look", one.colour, one.shape) for one in named if one.colour
            }
            claims |= {("count", one.count, what) for one in named for what in (one.colour, one.shape) if one.count > 1}
            if prompt.relation:
                claims.add((named[0].shape, prompt.relation, named[1].shape))
            never = [claim for claim in claims if None not in claim and claim not in trained]
            assert bool(never) == unseen, prompt


@pytest.mark.parametrize("kind", ["single_object", "two_objects"])
def test_prompts_that_cannot_be_unseen_say_so(kind: PromptKind) -> None:
    with pytest.raises(ValueError, match=r"no .* has an unseen combination"):
        prompts(kind, 4, unseen=True)
