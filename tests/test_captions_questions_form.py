"""Pairs of question and answer, in whatever form models give them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.captions.questions_form import questions_of
from tokenmill.errors import SampleError

PAIRS = (("What is it?", "A dog."), ("Where?", "On the beach."))
OBJECTS = [{"question": question, "answer": answer} for question, answer in PAIRS]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(OBJECTS),
        json.dumps(OBJECTS, indent=2),
        f"```json\n{json.dumps(OBJECTS)}\n```",
        f"Here are the pairs:\n\n```json\n{json.dumps(OBJECTS)}\n```\nI hope this helps!",
        json.dumps({"questions": OBJECTS}),
        json.dumps({"qa_pairs": [list(pair) for pair in PAIRS]}),
        json.dumps([{"Q": question, "A": answer} for question, answer in PAIRS]),
        "\n".join(map(json.dumps, OBJECTS)),
        json.dumps(OBJECTS)[:-1] + ', {"question": "And cut',
        json.dumps([*OBJECTS, *OBJECTS]),
        "Q: What is it?\nA: A dog.\n\nQ: Where?\nA: On the beach.",
        "Q: What is it?\nA: A dog.\nQ: Where?\nA: On\nthe beach.\nQ: Cut",
        "1. **Q: What is it?**\n   **A:** A dog.\n2. **Q: Where?**\n   **A:** On the beach.",
        "**Question 1:** What is it?\n**Answer 1:** A dog.\n\n**Question 2:** Where?\n**Answer 2:** On the beach.",
        "Q1. What is it?\nA1. A dog.\nQ2. Where?\nA2. On the beach.",
        "1. What is it?\n   A dog.\n2. Where?\n   On the beach.",
        "- Q: What is it? A: A dog.\n- Q: Where? A: On the beach.",
        "问：What is it?\n答：A dog.\n问题2：Where? 答：On the beach.",
        "Frage: What is it?\nAntwort: A dog.\nFrage: Where?\nAntwort: On the beach.",
    ],
)
def test_pairs_are_read_from_any_form(text):
    assert questions_of(text) == PAIRS


def test_answer_of_json_that_is_a_number_or_truth_is_told_in_words():
    text = '[{"question": "How many?", "answer": 3}, {"question": "Is it?", "answer": true}]'
    assert questions_of(text) == (("How many?", "3"), ("Is it?", "yes"))


def test_label_inside_an_answer_does_not_end_it():
    assert questions_of("Q: What is in it?\nA: Vitamin A: a lot") == (("What is in it?", "Vitamin A: a lot"),)


@pytest.mark.parametrize(
    "text",
    [
        "", "A brown dog runs over wet sand.", "[]", "{}", "null", '"x"', "[[[", "Q: What is it?", "A: A dog.",
        "Q: What is it?\nA:", '{"question": "", "answer": "x"}', '{"question": {"a": 1}, "answer": ["x"]}',
        '{"question": "a", "reply": "b"}', "I'm sorry, but I can't help with that.",
    ],
)  # fmt: skip
def test_answer_without_a_whole_pair_is_none(text):
    with pytest.raises(SampleError) as raised:
        questions_of(text)
    assert raised.value.reason == "no_questions"


def test_pairs_are_bounded_in_number_and_length():
    many = "".join(f"Q: What is {number}?\nA: {number}\n" for number in range(1_000))
    assert len(questions_of(many)) == 64
    ((question, answer),) = questions_of(json.dumps([{"question": "q" * 20_000, "answer": "a" * 20_000}]))
    assert (len(question), len(answer)) == (2_000, 8_000)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000, '{"a":' * 400_000, "{" * 2_000_000, '{"q":"' + "x{" * 1_000_000, "Q: a?\nA: b\n" * 200_000,
        "Q: " + "?" * 1_000_000, '{"a":1,"b":' * 900 + "[" + "1," * 1_000_000, "? A:" * 500_000, "*" * 1_000_000,
        "[1" + "0" * 1_000_000 + "]", ". a: " * 300_000, '{"questions":[' * 300 + "{}" + "]}" * 300,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_answer_is_read_in_bounded_time(text):
    started = time.process_time()
    try:
        questions_of(text)
    except SampleError as error:
        assert error.reason == "no_questions"
    assert time.process_time() - started < 2


pieces = st.sampled_from(
    ["Q:", "A:", "?", " ", "\n", "{", "}", '"question":', '"answer":', '"x"', ",", "[", "]", "**", "1."]
)


@given(text=st.text(max_size=80) | st.lists(pieces, max_size=30).map("".join))
def test_answer_of_any_characters_gives_whole_pairs_or_none(text):
    try:
        found = questions_of(text)
    except SampleError as error:
        assert error.reason == "no_questions"
        return
    assert found and all(question.strip() and answer.strip() for question, answer in found)
