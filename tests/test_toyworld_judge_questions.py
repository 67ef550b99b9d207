"""Answers: exact match, POPE's figures, and two chance levels that a blind model does not pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from benchmarks.toyworld.judge_files import answer_score
from benchmarks.toyworld.judge_questions import AnswerScore, YesNo, plain, score_answers, yes_no
from benchmarks.toyworld.judge_tables import answer_controls, answer_table, control_table, yes_no_table
from benchmarks.toyworld.world import COLOURS, NUMBERS, Question, QuestionKind


def asked(kind: QuestionKind, form: str, truths: Sequence[str], *, unseen: bool = False) -> list[Question]:
    return [Question(kind=kind, form=form, text="?", answer=truth, unseen=unseen) for truth in truths]


def overall(questions: Sequence[Question], answers: Sequence[str]) -> AnswerScore:
    return score_answers(questions, answers)[0]


def test_answers_are_matched_exactly_but_for_case_blanks_and_a_full_stop() -> None:
    assert [plain(answer) for answer in (" Yes. ", "RED", "two .")] == ["yes", "red", "two"]
    said = ["two", "Two.", "2", "two circles", "", "two two"]
    score = overall(asked("counting", "number", ["two"] * len(said)), said)
    assert score.right.value == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("kind", "form", "truth", "wrong"),
    [
        ("yes_no", "random", "yes", "no"),
        ("counting", "number", "three", "four"),
        ("colour", "name", "red", "purple"),
        ("relation", "where", "left", "right"),
        ("motion", "way", "up", "down"),
    ],
)
def test_answers_of_each_kind_are_right_or_wrong(kind: QuestionKind, form: str, truth: str, wrong: str) -> None:
    assert kind in get_args(QuestionKind)
    assert overall(asked(kind, form, [truth] * 2), [truth, wrong]).right.value == 0.5


def test_yes_no_figures_are_those_of_pope() -> None:
    truths = ["yes"] * 4 + ["no"] * 4
    said = ["yes", "yes", "yes", "no", "yes", "no", "no", "maybe"]
    assert yes_no(truths, said) == YesNo(
        accuracy=5 / 8, precision=3 / 4, recall=3 / 4, f1=3 / 4, yes=4 / 8, neither=1 / 8
    )
    assert yes_no(["no"], ["no"]) == YesNo(accuracy=1.0, precision=None, recall=None, f1=None, yes=0.0, neither=0.0)
    always = overall(asked("yes_no", "random", truths), ["yes"] * 8).yes_no
    assert always is not None
    assert (always.accuracy, always.recall, always.yes) == (0.5, 1.0, 1.0)


def test_chance_of_a_constant_answer_is_its_share_and_it_is_at_chance() -> None:
    truths = ["yes"] * 60 + ["no"] * 40
    score = overall(asked("yes_no", "random", truths), ["yes"] * 100)
    assert score.right.value == score.constant == 0.6
    found = score.at_chance()
    assert found is not None
    assert found.holds


def test_chance_of_shuffled_answers_is_the_product_of_shares() -> None:
    random = np.random.default_rng(3)
    truths, said = random.choice(list(COLOURS), 80), random.choice(list(COLOURS), 80)
    score = overall(asked("colour", "name", [str(one) for one in truths]), [str(one) for one in said])
    pairs = sum(truths[i] == said[j] for i in range(80) for j in range(80) if i != j)
    assert score.chance is not None
    assert score.chance.mean == pytest.approx(pairs / (80 * 79))


def test_chance_does_not_mix_forms_whose_answers_differ() -> None:
    """Left for left and yes for yes: whoever sees the form alone gets a half of each, not of the mixture a quarter."""
    where = asked("relation", "where", ["left", "right"] * 20)
    whether = asked("relation", "is", ["yes", "no"] * 20)
    blind = ["left"] * 40 + ["yes"] * 40
    score = overall([*where, *whether], blind)
    assert score.right.value == 0.5
    assert score.chance is not None
    assert score.chance.mean == pytest.approx(0.5)
    assert {(one.form, one.right.n) for one in score_answers([*where, *whether], blind) if one.split == "all"} == {
        ("all", 80),
        ("where", 40),
        ("is", 40),
    }


def test_chance_of_a_colour_knows_the_shape_that_is_asked_about() -> None:
    """Nobody has to see to know that triangles are green and circles red where no others are: 0.75 of each."""
    truths = {"triangle": ["green", "green", "green", "blue"] * 5, "circle": ["red", "red", "red", "blue"] * 5}
    questions = [
        Question(kind="colour", form="name", text=f"what colour is the {shape}?", answer=truth, unseen=False)
        for shape, of in truths.items()
        for truth in of
    ]
    score = overall(questions, ["green"] * 20 + ["red"] * 20)
    assert score.constant == score.right.value == 0.75
    assert score.chance is not None
    assert score.chance.mean == pytest.approx(0.75)


def test_controls_at_chance_hold_for_a_blind_model_and_fail_for_one_that_sees_a_little() -> None:
    random = np.random.default_rng(11)
    truths = [str(one) for one in random.choice(NUMBERS[1:], 200)]
    blind = [str(one) for one in random.choice(NUMBERS[1:], 200)]
    peeking = [truth if random.random() < 0.25 else other for truth, other in zip(truths, blind, strict=True)]
    questions = asked("counting", "number", truths)
    runs = {"untrained": score_answers(questions, blind), "peeks": score_answers(questions, peeking)}
    found = answer_controls(runs)
    assert {key[0]: one.holds for key, one in found.items() if key[-1] == "all"} == {"untrained": True, "peeks": False}
    assert control_table(found).endswith("2 of 4 above chance.\n")


def test_answers_by_split_count_seen_and_unseen_apart_and_tables_show_them() -> None:
    questions = [*asked("colour", "name", ["red", "blue"]), *asked("colour", "name", ["green"], unseen=True)]
    scores = score_answers(questions, ["red", "blue", "red"])
    assert {one.split: (one.right.value, one.right.n) for one in scores} == {
        "all": (pytest.approx(2 / 3), 3),
        "seen": (1.0, 2),
        "unseen": (0.0, 1),
    }
    table = answer_table({"model": scores, "untrained": score_answers(questions[:2], ["blue", "red"])})
    assert "| colour | all | all | 0.67 | 0.00 | " in table
    assert "| colour | all | unseen | 0.00 | — | — | 1 | 0.00–0.79 |" in table


def test_answer_scores_survive_a_file() -> None:
    scores = score_answers(asked("yes_no", "random", ["yes", "no", "no"]), ["yes", "no", "what"])
    assert [answer_score(json.loads(json.dumps(one.to_json()))) for one in scores] == scores
    assert "| model | yes_no | all | 0.67 | 1.00 | 1.00 | 1.00 | 0.33 | 0.33 | 3 |" in yes_no_table({"model": scores})


def test_answers_without_a_question_each_are_refused() -> None:
    with pytest.raises(ValueError, match="2 questions, 1 answers"):
        score_answers(asked("colour", "name", ["red", "blue"]), ["red"])
