"""The judge of pictures: right on what was asked, wrong where one property differs, and not to be flattered."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from benchmarks.toyworld.judge_chance import at_chance, chance, wilson
from benchmarks.toyworld.judge_kinds import fits_of, judge
from benchmarks.toyworld.judge_reading import read
from benchmarks.toyworld.judge_scores import score_pictures
from benchmarks.toyworld.world import Prompt, Wanted
from tests.toy_pictures import Placed, picture

CIRCLE = Prompt(kind="single_object", text="a circle", wanted=(Wanted(shape="circle"),))
TWO = Prompt(kind="two_objects", text="", wanted=(Wanted(shape="circle"), Wanted(shape="square")))
THREE = Prompt(kind="counting", text="", wanted=(Wanted(shape="triangle", colour="blue", count=3),))
RED = Prompt(kind="colours", text="", wanted=(Wanted(shape="circle", colour="red"),))
LEFT = Prompt(kind="position", text="", wanted=(Wanted(shape="circle"), Wanted(shape="square")), relation="left of")
BOTH = Prompt(
    kind="colour_attribution",
    text="",
    wanted=(Wanted(shape="circle", colour="red"), Wanted(shape="square", colour="blue")),
)
RED_CIRCLE: Placed = ("red", "circle", 9.3, 14.2, 4.8)
BLUE_SQUARE: Placed = ("blue", "square", 22.1, 16.4, 4.9)
TRIANGLES: list[Placed] = [("blue", "triangle", x, y, 4.2) for x, y in [(7.2, 8.1), (23.4, 9.7), (15.1, 23.3)]]

RIGHT = [
    (CIRCLE, [RED_CIRCLE]),
    (TWO, [RED_CIRCLE, BLUE_SQUARE]),
    (THREE, TRIANGLES),
    (RED, [RED_CIRCLE]),
    (LEFT, [RED_CIRCLE, BLUE_SQUARE]),
    (BOTH, [RED_CIRCLE, BLUE_SQUARE]),
]
FOURTH: Placed = ("blue", "triangle", 26.5, 25.0, 4.2)
WRONG = [  # prompt, a picture that is wrong in exactly one property, the fault that is to be named
    (CIRCLE, [("red", "square", 9.3, 14.2, 4.8)], "shape"),
    (CIRCLE, [RED_CIRCLE, ("red", "circle", 23.0, 14.2, 4.8)], "count"),
    (CIRCLE, [], "empty"),
    (TWO, [RED_CIRCLE], "count"),
    (TWO, [RED_CIRCLE, ("blue", "circle", 22.1, 16.4, 4.9)], "shape"),
    (TWO, [RED_CIRCLE, ("blue", "triangle", 22.1, 16.4, 4.9)], "shape"),
    (THREE, TRIANGLES[:2], "count"),
    (THREE, [*TRIANGLES, FOURTH], "count"),
    (THREE, [*TRIANGLES[:2], ("purple", "triangle", 15.1, 23.3, 4.2)], "colour"),
    (THREE, [*TRIANGLES[:2], ("blue", "circle", 15.1, 23.3, 4.2)], "shape"),
    (RED, [("purple", "circle", 9.3, 14.2, 4.8)], "colour"),
    (RED, [("yellow", "circle", 9.3, 14.2, 4.8)], "colour"),
    (RED, [("red", "triangle", 9.3, 14.2, 4.8)], "shape"),
    (LEFT, [("red", "circle", 22.1, 16.4, 4.8), ("blue", "square", 9.3, 14.2, 4.9)], "relation"),
    (LEFT, [("red", "circle", 15.2, 7.1, 4.8), ("blue", "square", 16.4, 22.0, 4.9)], "relation"),
    (BOTH, [("blue", "circle", 9.3, 14.2, 4.8), ("red", "square", 22.1, 16.4, 4.9)], "colour"),  # swapped
    (BOTH, [("red", "circle", 9.3, 14.2, 4.8), ("green", "square", 22.1, 16.4, 4.9)], "colour"),
]


@pytest.mark.parametrize("background", ["white", "gray", "black"])
@pytest.mark.parametrize(("prompt", "things"), RIGHT, ids=[prompt.kind for prompt, _ in RIGHT])
def test_judge_of_what_was_asked_is_right(prompt: Prompt, things: list[Placed], background: str) -> None:
    verdict = judge(prompt, read(picture(things, background, seed=3)))
    assert (verdict.right, verdict.geneval, verdict.fault) == (True, True, "")


@pytest.mark.parametrize("background", ["white", "gray", "black"])
@pytest.mark.parametrize(("prompt", "things", "fault"), WRONG)
def test_judge_of_a_picture_with_one_property_changed_is_wrong(
    prompt: Prompt, things: list[Placed], fault: str, background: str
) -> None:
    verdict = judge(prompt, read(picture(things, background, seed=4)))
    assert (verdict.right, verdict.fault) == (False, fault)


def test_judge_of_another_background_than_named_is_wrong() -> None:
    asked = Prompt(kind="colours", text="", wanted=RED.wanted, background="white")
    assert judge(asked, read(picture([RED_CIRCLE], "white"))).right
    assert judge(asked, read(picture([RED_CIRCLE], "gray"))).fault == "background"


@pytest.mark.parametrize("prompt", [prompt for prompt, _ in RIGHT], ids=lambda prompt: prompt.kind)
@pytest.mark.parametrize("what", ["even", "noise", "stripes", "smooth noise"])
def test_judge_of_empty_and_noise_pictures_is_wrong_for_every_kind(prompt: Prompt, what: str) -> None:
    random = np.random.default_rng(5)
    for _ in range(10):
        pixels = {
            "even": np.full((32, 32, 3), random.integers(0, 256)),
            "noise": random.integers(0, 256, (32, 32, 3)),
            "stripes": np.repeat(random.integers(0, 256, (1, 32, 3)), 32, axis=0),
            "smooth noise": np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1), int)),
        }[what].astype(np.uint8)
        verdict = judge(prompt, read(pixels))
        assert not verdict.right
        assert not verdict.geneval


def test_judge_of_a_picture_full_of_everything_is_wrong_though_geneval_takes_it() -> None:
    """The looser rule is what a lenient judge would pass; the score is the strict one."""
    things = [RED_CIRCLE, BLUE_SQUARE, ("green", "triangle", 15.0, 26.0, 4.0), ("yellow", "circle", 26, 5.5, 4.0)]
    reading = read(picture(things, "black"))
    assert len(reading.objects) == 4
    for prompt in (CIRCLE, TWO, RED, BOTH):
        verdict = judge(prompt, reading)
        assert verdict.geneval
        assert verdict.fault == "count"


def test_judge_of_a_good_object_beside_a_smear_is_wrong() -> None:
    pixels = picture([RED_CIRCLE])
    pixels[24:30, 4:30] = (30, 70, 220)  # a blue bar is no shape of this world
    assert judge(RED, read(pixels)).fault == "junk"
    pixels = picture([RED_CIRCLE])
    pixels[20:30, 18:29] = (250, 140, 200)  # pink is no colour of it
    assert judge(RED, read(pixels)).fault == "junk"


def test_judge_of_specks_smaller_than_any_thing_ignores_them() -> None:
    pixels = picture([RED_CIRCLE])
    pixels[27:29, 26:29] = (30, 160, 60)
    assert judge(RED, read(pixels)).right


def test_relation_on_the_diagonal_and_within_the_margin_does_not_hold_twice() -> None:
    for dx, dy in [(9, 9.6), (9.6, 9)]:
        things: list[Placed] = [("red", "circle", 10, 10, 4), ("blue", "square", 10 + dx, 10 + dy, 4)]
        reading = read(picture(things))
        held = [
            relation
            for relation in ("left of", "right of", "above", "below")
            if judge(Prompt(kind="position", text="", wanted=LEFT.wanted, relation=relation), reading).right
        ]
        assert len(held) == 1


def test_scores_by_kind_and_split_name_faults_and_counts() -> None:
    unseen = Prompt(kind="colours", text="", wanted=(Wanted(shape="square", colour="blue"),), unseen=True)
    prompts = [RED, RED, RED, unseen, unseen]
    purple: Placed = ("purple", "circle", 9, 9, 4.8)
    drawn: list[list[Placed]] = [[RED_CIRCLE], [BLUE_SQUARE], [purple], [BLUE_SQUARE], [BLUE_SQUARE]]
    scores = {one.split: one for one in score_pictures(prompts, [picture(things) for things in drawn])}
    assert {split: (one.right.value, one.right.n) for split, one in scores.items()} == {
        "all": (pytest.approx(0.6), 5),
        "seen": (pytest.approx(1 / 3), 3),
        "unseen": (1.0, 2),
    }
    assert scores["seen"].faults == {"shape": 1, "colour": 1}
    # off the diagonal: the first picture for two other red prompts, the three blue squares for the unseen ones
    assert scores["all"].chance is not None
    assert scores["all"].chance.mean == pytest.approx((2 + 2 + 1 + 1) / 20)


def test_chance_is_the_mean_over_all_ways_to_deal_answers_to_other_questions() -> None:
    fits = np.random.default_rng(2).random((5, 5)) < 0.4
    dealt = [order for order in permutations(range(5)) if all(order[i] != i for i in range(5))]
    wanted = np.mean([[fits[i, order[i]] for i in range(5)] for order in dealt])
    found = chance([fits])
    assert found is not None
    assert found.mean == pytest.approx(wanted)
    every = np.array([sum(fits[i, order[i]] for i in range(5)) for order in permutations(range(5))]) / 5
    assert np.mean((every >= found.low) & (every <= found.high)) >= 0.99


def test_chance_in_strata_deals_inside_each() -> None:
    """Two strata whose answers fit everything inside and nothing outside: dealt together they would score half."""
    inside = np.ones((10, 10), bool)
    together = np.kron(np.eye(2), inside).astype(bool)
    apart, joined = chance([inside, inside]), chance([together])
    assert apart is not None
    assert joined is not None
    assert apart.mean == 1.0
    assert joined.mean == pytest.approx(180 / 380)
    assert chance([np.ones((1, 1), bool)]) is None


def test_at_chance_holds_for_a_blind_drawer_and_fails_for_one_that_sees() -> None:
    random = np.random.default_rng(7)
    asked = random.integers(0, 5, 200)
    blind, seeing = random.integers(0, 5, 200), np.where(random.random(200) < 0.2, asked, random.integers(0, 5, 200))
    for answers, holds in ((blind, True), (seeing, False)):
        fits = asked[:, None] == answers[None]
        level = chance([fits])
        assert level is not None
        found = at_chance(float(np.trace(fits)) / 200, level)
        assert found.holds is holds
        assert found.within is holds
    nothing = np.zeros((200, 200), bool)
    level = chance([nothing])
    assert level is not None
    assert at_chance(0.0, level).holds
    assert not at_chance(1 / 200, level).holds


def test_wilson_is_that_of_the_textbook() -> None:
    found = wilson(9, 10)
    assert [found.low, found.high] == pytest.approx([0.5958, 0.9821], abs=1e-4)
    assert wilson(0, 50).low == 0.0
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 0)


def test_fits_has_a_row_a_prompt_and_a_column_a_picture() -> None:
    readings = [read(picture([RED_CIRCLE])), read(picture([BLUE_SQUARE]))]
    assert fits_of([RED, CIRCLE, TWO], readings).tolist() == [[True, False], [True, False], [False, False]]
