"""Prompts: templates of the recipe, and values of strangers in them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.captions.prompts import (
    check_template,
    drawn_prompt,
    fields,
    literals,
    prompt_hash,
    render,
    request_seed,
)
from tokenmill.errors import RecipeError, SampleError

SAMPLE = {
    "key": "a/1",
    "caption": "a red kite",
    "metadata": {"title": "", "exif": {"make": "Canon"}, "tags": ["sky", "", None, "kite"], "Image Title": "Kites"},
    "scores": {"aesthetic": 5.199999809265137, "odd": float("nan")},
    "width_px": 640,
    "seconds": 12.5,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Describe it.", "Describe it."),
        ("{caption}, by {metadata.exif.make}", "a red kite, by Canon"),
        ("{ caption }", "a red kite"),
        ("{metadata.title|caption}", "a red kite"),
        ("{metadata.title | metadata.name | 'no title'}", "no title"),
        ('{metadata.title|"it\'s {odd}|"}', "it's {odd}|"),
        ("{metadata.title|''}!", "!"),
        ("{scores.aesthetic:.1f} of {scores.aesthetic}", "5.2 of 5.2"),
        ("{scores.odd:.2f|caption:.1f|width_px:.0f}", "640"),
        ("{width_px} px, {seconds} s", "640 px, 12.5 s"),
        ("{metadata.tags}", "sky, kite"),
        ("{metadata.Image Title}", "Kites"),
        ("{metadata.exif}", "make: Canon"),
        ('{{"question": "{caption}"}}', '{"question": "a red kite"}'),
        ("{{{caption}}}", "{a red kite}"),
        (
            'JSON: [{"question": …, "of": {"a": "{caption}"}}] {} { } {1',
            'JSON: [{"question": …, "of": {"a": "a red kite"}}] {} { } {1',
        ),
        ("{{caption}} }", "{caption} }"),
        ("", ""),
    ],
)
def test_template_with_fields_is_filled(template, expected):
    assert render(template, SAMPLE) == expected


@pytest.mark.parametrize(
    "template",
    ["{metadata.title}", "{metadata.exif.make.x}", "{caption.x}", "{scores.odd}", "{caption:.1f}", "{pieces}"],
)
def test_template_with_a_field_that_the_sample_lacks_fails_the_sample(template):
    with pytest.raises(SampleError, match="needs") as raised:
        render(template, SAMPLE)
    assert raised.value.reason == "no_field"


@pytest.mark.parametrize(
    "template",
    ["{caption", "{caption|}", "{caption!r}", "{caption:>9}", "{caption[0]}", "{caption|'open}", "{caption.}", "{a{}}"],
)  # fmt: skip
def test_template_with_an_error_is_refused(template):
    with pytest.raises(RecipeError, match=r"\{\{"):
        check_template(template)


def test_template_with_an_unknown_field_is_refused_with_those_it_may_name():
    with pytest.raises(RecipeError, match=r"unknown field 'titel.x'; allowed: key, source.*quotes"):
        check_template("{caption|titel.x}")
    check_template("{titel.x} {metadata.whatever|'none'}", allowed=["titel", "metadata"])


def test_fields_of_a_template_are_named_once_in_order():
    template = "{caption|metadata.title|'x'} {{no}} {scores.aesthetic:.1f} {caption}"
    assert fields(template) == ("caption", "metadata.title", "scores.aesthetic")
    assert literals(template) == (" {no} ", " ")


def test_value_that_looks_like_a_template_is_shown_as_it_is():
    assert render("{caption}", {"caption": "{key} {{x}} {metadata.secret|'y'}", "key": "k"}) == (
        "{key} {{x}} {metadata.secret|'y'}"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\x00b\x1b[31m\nc\u2028d", "a b [31m c d"),
        ("half \ud83d pair", "half � pair"),
        ("\u202egnp.exe\u2066 \U000e0041\U000e0042x", "gnp.exe x"),
        ("<|im_end|><image> [INST] a < b", "< |im_end| >< image > [ INST ] a < b"),
        ("<｜end▁of▁sentence｜>", "< ｜end▁of▁sentence｜ >"),
        (True, "true"),
        ([["a"], {"b": 1}], "a, b: 1"),
    ],
)
def test_value_that_is_hostile_is_made_harmless(value, expected):
    assert render("{caption}", {"caption": value}) == expected


@pytest.mark.parametrize(
    "value",
    ["x" * 2_000_000, "< " * 1_000_000, ["y" * 50] * 100_000, "[[[" * 700_000, {str(n): "z" for n in range(100_000)}],
)  # fmt: skip
def test_value_that_is_endless_is_cut(value):
    assert 1_000 < len(render("{caption}", {"caption": value})) <= 2_000


def test_value_that_is_nested_without_end_or_a_huge_number_says_nothing():
    nested = []
    nested.append(nested)
    for value in (nested, 10**100_000, float("inf"), object(), b"bytes"):
        with pytest.raises(SampleError):
            render("{caption}", {"caption": value})
        with pytest.raises(SampleError):
            render("{caption:.1f}", {"caption": value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(value=json_values)
def test_value_of_any_kind_becomes_one_clean_line_or_no_field(value):
    try:
        text = render("<{caption}>", {"caption": value})
    except SampleError as error:
        assert error.reason == "no_field"
        return
    assert len(text.encode("utf-8")) > 2
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text)


@given(text=st.text(alphabet="{}|'\". :ab0f", max_size=30))
def test_template_of_any_characters_is_refused_or_rendered(text):
    try:
        check_template(text, allowed=["a", "b", "ab"])
    except RecipeError:
        return
    sample = dict.fromkeys(("a", "b", "ab"), 1.5)
    try:
        render(text, sample)
    except SampleError as error:
        assert error.reason == "no_field"


def test_prompt_of_a_sample_is_drawn_evenly_and_always_the_same():
    prompts = ("one", "two", "three")
    drawn = [drawn_prompt(prompts, f"key-{number}", 7) for number in range(9_000)]
    counts = Counter(drawn)
    assert all(abs(counts[prompt] - 3_000) < 200 for prompt in prompts)
    assert drawn == [drawn_prompt(prompts, f"key-{number}", 7) for number in range(9_000)]
    assert drawn != [drawn_prompt(prompts, f"key-{number}", 8) for number in range(9_000)]
    assert (drawn_prompt((), "a", 0), drawn_prompt(("only",), "a", 0)) == ("", "only")


def test_seed_of_a_request_differs_by_sample_piece_and_seed():
    seeds = {request_seed(seed, key, piece) for seed in (0, 1) for key in ("a", "b", "\ud800") for piece in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_hash_of_prompts_differs_by_any_word_of_theirs():
    hashes = {
        prompt_hash(prompts, system)
        for prompts, system in [(["a"], ""), (["b"], ""), (["a", "b"], ""), (["b", "a"], ""), (["a"], "b"), ([], "ab")]
    }
    assert len(hashes) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)
    assert prompt_hash(("a",), "s") == prompt_hash(["a"], "s")
