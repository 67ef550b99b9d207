"""What is wrong with answers, and what of them is the caption."""

from __future__ import annotations

import random
import time
from pathlib import Path

import django
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.refusal_texts import CAPTIONS, REFUSALS

from tokenmill.captions.checks import check_settings, judge
from tokenmill.captions.echoes import is_echo
from tokenmill.captions.loops import is_loop
from tokenmill.captions.refusals import is_refusal
from tokenmill.captions.tidying import tidied
from tokenmill.demo.scenes import scene
from tokenmill.demo.text_lines import english, read_catalogue
from tokenmill.demo.wording import captions as demo_captions
from tokenmill.errors import RecipeError
from tokenmill.settings_caption import Checks

PROMPT = (
    "Describe the image in one detailed paragraph: objects, colours, places and mood. Do not begin with 'The image'. "
    "Its old caption: {caption}"
)
DENSE = (
    "A brown dog with a red collar runs over wet sand near the sea, while two children in yellow coats watch from a "
    "wooden pier. Grey clouds gather behind them and white gulls circle over small boats that rest upside down on "
    "trestles, beside nets, ropes and buoys of many colours."
)


def reason(text, **settings):
    asked = {
        name: settings.pop(name) for name in ("prompt_template", "system_template", "finish_reason") if name in settings
    }
    error = judge(tidied(text), checks=Checks(**settings), **asked)
    return error and error.reason


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        (DENSE, {"prompt_template": PROMPT, "finish_reason": "stop", "languages": ["en"]}, None),
        ("", {}, "empty"),
        (" \n\t\x00\u2028", {}, "empty"),
        ("<think>What do I see? A dog", {"finish_reason": "length"}, "empty"),
        ("I'm sorry, but I can't help with that.", {}, "refusal"),
        ("I'm sorry, but I can't help with that.", {"refusals": False}, None),
        ("A man", {"finish_reason": "content_filter"}, "refusal"),
        ("Content unavailable in your region.", {"refusal_patterns": [r"unavailable in your \w+"]}, "refusal"),
        ("A dog. " * 40, {"finish_reason": "length"}, "loop"),
        ("A dog. " * 40, {"loops": False}, None),
        (DENSE[:100], {"finish_reason": "length"}, "cut_off"),
        (DENSE[:100], {"finish_reason": "MAX_TOKENS"}, "cut_off"),
        (DENSE[:100], {"finish_reason": "length", "cut_off": False}, None),
        (DENSE, {"max_chars": 100}, "too_long"),
        ("a red kite", {"min_words": 4}, "too_short"),
        ("一只狗", {"min_words": 4}, "too_short"),
        ("一只棕色的狗", {"min_words": 4}, None),
        (DENSE, {"languages": ["zh", "de"]}, "wrong_language"),
        ("一只棕色的狗在海边湿漉漉的沙滩上奔跑。", {"languages": ["en"]}, "wrong_language"),
        ("一只棕色的狗在海边湿漉漉的沙滩上奔跑。", {"languages": ["en", "zh"]}, None),
        ("a dog", {"languages": ["de"]}, None),
        ("1234", {"languages": ["de"]}, None),
        (PROMPT, {"prompt_template": PROMPT}, "prompt_echo"),
        (PROMPT, {"prompt_template": PROMPT, "echoes": False}, None),
        (PROMPT, {"system_template": PROMPT}, "prompt_echo"),
    ],
)  # fmt: skip
def test_answer_is_judged_by_the_first_reason_that_holds(text, settings, expected):
    assert reason(text, **settings) == expected


def test_refusals_are_known():
    assert [text for text in REFUSALS if reason(f'"{text}"') != "refusal"] == []


def test_captions_that_come_near_to_a_refusal_are_none():
    assert [text for text in CAPTIONS if is_refusal(text) or reason(text)] == []


def _true_texts():
    """Yield texts that are no refusals: the demo's captions, Python's manual, django's messages in ten languages."""
    for number in range(500):
        yield from demo_captions(scene(number))
    yield from (document["text"] for document in english())
    for language in ("de", "fr", "es", "it", "pt", "ru", "ja", "ko", "zh_Hans", "zh_Hant"):
        for path in sorted(Path(django.__file__).parent.glob(f"c*/**/{language}/LC_MESSAGES/django.mo")):
            yield from (text for text in read_catalogue(path.read_bytes()).values() if text and "\0" not in text)


def test_true_texts_are_hardly_ever_taken_for_refusals_loops_or_echoes():
    reasons = [reason(text, prompt_template=PROMPT) for text in list(_true_texts())]
    assert len(reasons) > 8_000
    wrong = [one for one in reasons if one is not None]
    assert len(wrong) < len(reasons) / 500, wrong  # django asks for uploads of pictures, and says what it can't find


@pytest.mark.parametrize(
    "text",
    [
        "a dog " * 5,
        "The image features a dog. " * 4,
        DENSE + " The sky is grey." * 4,
        "A kitchen. " + " ".join(f"{number}. a cup on the table" for number in range(1, 9)),
        "一只狗在跑，" * 5,
        "一只猫坐着。" + "天空是蓝色的。" * 12,
        "哈" * 24,
        "x" * 8_000,
        "the cat and the dog and " * 400,
        DENSE + "The man holds a cup and looks at the woman. " * 12 + "The end.",
        "กขค" * 40,
        " ".join(["word"] * 4_000),
    ],
)
def test_text_that_goes_in_circles_is_a_loop(text):
    assert is_loop(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        DENSE,
        "A sign reads: ha ha ha ha ha",
        "row, row, row your boat, gently down the stream",
        "The first column shows a dog. The second column shows a cat. The third one, a bird.",
        "a bill of 1000000000000000000000000000000000 marks",
        "A chart whose values are 12, 15, 18, 22, 25, 30, 35, 40, 42, 44, 50, 52, 60, 61, 63",
        "A calendar: " + " ".join(map(str, range(1, 32))),
        "......................",
        "A table of two columns, name and price.\n| --- | --- |\n+-----------------------------------+",
        "山青水秀，绿树成荫，鸟语花香，远处有一座小桥，桥下有两只小船",
        '[{"question": "What colour is the dog?", "answer": "Brown."}, {"question": "What colour is the cat?", '
        '"answer": "Black."}, {"question": "Where is the dog?", "answer": "At sea."}, {"question": "How is it?", '
        '"answer": "Fine."}]',
    ],
)
def test_text_with_some_repetition_is_no_loop(text):
    assert not is_loop(text)


@given(unit=st.text(alphabet="abc 狗在", min_size=3, max_size=60).filter(str.strip), times=st.integers(8, 200))
def test_anything_again_and_again_is_a_loop(unit, times):
    assert is_loop("Once, " + " ".join([unit] * times))


def test_loop_share_is_a_setting():
    text = "The first column shows a brown dog. " * 2 + DENSE[:120]
    assert not is_loop(text)
    assert is_loop(text, max_repeated=0.05)


@pytest.mark.parametrize(
    ("answer", "template"),
    [
        (PROMPT.replace("{caption}", "a kite"), PROMPT),
        ("Describe the image in one detailed paragraph: objects, colours, places and mood. It shows a dog.", PROMPT),
        ("describe THE image, in one detailed paragraph; objects; colours", PROMPT),
        ("A photo of", "A photo of"),
        ("A brown dog runs on a beach", "Write a caption such as: A brown dog runs on a beach."),
        ("请用一段话详细描述这张图片中的内容", "请用一段话详细描述这张图片中的内容。"),
        ("A kite. Rewrite the caption above in plain words", "{caption} Rewrite the caption above in plain words, ok"),
    ],
)  # fmt: skip
def test_answer_that_repeats_the_prompt_is_an_echo(answer, template):
    assert is_echo(answer, [template])


@pytest.mark.parametrize(
    ("answer", "template"),
    [
        (DENSE, PROMPT),
        ("A photo of a red kite", "A photo of"),
        ("a red car", "Is it a cat, a dog or a red car?"),
        ("A brown dog runs on a wet beach", "Rewrite: {caption}"),
        ("The image shows a dog", "Describe the image"),
        ("A dog", ""),
        ("A dog", "{caption}"),
        ("", PROMPT),
    ],
)
def test_answer_that_shares_words_with_the_prompt_is_no_echo(answer, template):
    assert not is_echo(answer, [template, ""])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Sure! Here's a detailed caption for the image:\n\n\"A red kite.\"", "A red kite."),
        ("**Caption:** A dog", "A dog"),
        ("Image description: A dog", "A dog"),
        ("Okay, here is the rewritten version of the caption: **A dog**", "A dog"),
        ("```\nA dog\nruns\n```", "A dog\nruns"),
        ("“A dog”", "A dog"),
        ("「一只狗」", "一只狗"),
        ("好的，以下是图片的描述：一只狗", "一只狗"),
        ("Voici une description de l'image : un chien", "un chien"),
        ("Описание: собака", "собака"),
        ("<think>hm</think>\n\nA dog<|im_end|>", "A dog"),
        ("A\r\n\r\n\r\n\r\n b\t c \x00\ud800\ufeff", "A\n\nb c"),
        ("Caption:", "Caption:"),
        ("Here is a dog: brown", "Here is a dog: brown"),
        ("This is a sign with one sentence: closed", "This is a sign with one sentence: closed"),
        ("'tis a dog's life'", "'tis a dog's life'"),
        ('"A" and "B"', '"A" and "B"'),
        ("**A dog** and a **cat**", "**A dog** and a **cat**"),
        ("A sign: \"Caption: none\"", "A sign: \"Caption: none\""),
        ('"', '"'),
    ],
)  # fmt: skip
def test_answer_is_tidied_of_what_frames_the_caption(answer, expected):
    assert tidied(answer) == expected


@given(
    text=st.text()
    | st.lists(st.sampled_from(['"', "**", "Caption:", "```", "\n", " ", "a", "<think>", "</s>", "“", "”"])).map(
        "".join
    )
)
def test_tidied_text_is_storable_and_stays_as_it_is(text):
    once = tidied(text)
    assert once == once.strip() and "\n\n\n" not in once and "\r" not in once
    assert once.encode("utf-8") is not None
    if len(text) < 16:
        assert tidied(once) == once


@given(text=st.text())
def test_any_answer_is_judged(text):
    judge(text, prompt_template=PROMPT, finish_reason="stop", checks=Checks(languages=["en"]))


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "a dog runs. ",
        "狗",
        "a\n",
        '"',
        "Caption: ",
        "sorry ",
        "\x00",
        "*",
        "<think>< ",
        "y" * 15_999 + "x",
        " ",
        None,
    ],
)
def test_caption_of_two_megabytes_is_judged_in_bounded_time(unit):
    letters = random.Random(1)
    words = (
        (unit for _ in range(2_000_000 // len(unit))) if unit else (letters.randbytes(3).hex() for _ in range(300_000))
    )
    text = ("" if unit else " ").join(words)
    started = time.process_time()
    assert reason(text, prompt_template=PROMPT, languages=["en"]) in ("too_long", "loop", "empty")
    assert time.process_time() - started < 3


def test_settings_with_an_unknown_language_are_refused():
    check_settings(Checks(languages=["en", "zh"]))
    check_settings(Checks())
    with pytest.raises(RecipeError, match=r"unknown language 'english'; known: .*\bzh\b"):
        check_settings(Checks(languages=["english"]))


def test_settings_with_a_broken_pattern_are_refused():
    with pytest.raises(ValidationError, match="no regular expression"):
        Checks(refusal_patterns=["(open"])
