"""The captioner that takes what the source brings."""

from __future__ import annotations

import json

import pytest

from tokenmill.captions.captioner import Request, build_captioner
from tokenmill.errors import RecipeError, SampleError


def captions(sample, **settings):
    ((answer,),) = build_captioner("metadata", settings).answers([Request(index=0, sample=sample)])
    return answer.error or answer.texts


def test_caption_of_sample_with_caption_and_title_is_the_caption():
    assert captions({"key": "a", "caption": "a red kite", "title": "IMG 3"}) == ("a red kite",)


def test_caption_of_sample_with_blank_caption_is_its_title():
    assert captions({"caption": " \n", "metadata": {"title": "Saturn V"}}) == ("Saturn V",)


def test_caption_with_fields_in_another_order_follows_them():
    sample = {"caption": "a red kite", "metadata": {"exif": {"description": "kite over a field"}}}
    assert captions(sample, fields=["exif.description", "caption"]) == ("kite over a field",)


def test_caption_of_sample_with_keywords_only_joins_them_by_the_template():
    sample = {"metadata": {"keywords": ["boat", " sea ", "boat", None, "sky"]}}
    settings = {"keyword_template": "A photograph of {keywords}.", "keyword_joiner": " and "}
    assert captions(sample, **settings) == ("A photograph of boat and sea and sky.",)


def test_caption_of_sample_with_several_captions_gives_distinct_variants():
    sample = {"caption": ["two dots", "a pair of dots", "two  dots", ""]}
    assert captions(sample) == ("two dots", "a pair of dots")
    assert captions(sample, max_variants=1) == ("two dots",)


def test_caption_with_control_characters_and_line_breaks_is_one_clean_line():
    (caption,) = captions({"caption": "a\x00 cat\n\n on\ta\u2028 mat\x1b \ud800"})
    assert caption == "a cat on a mat"
    json.dumps(caption).encode("utf-8")


@pytest.mark.parametrize(
    ("limit", "expected"), [(11, "a very long"), (10, "a very"), (1, "a"), (100, "a very long one")]
)
def test_caption_that_is_too_long_ends_at_a_word(limit, expected):
    assert captions({"caption": "a very long one"}, max_chars=limit) == (expected,)


def test_caption_of_one_endless_word_is_cut_inside_it():
    assert captions({"caption": "x" * 50}, max_chars=7) == ("x" * 7,)


def test_caption_of_sample_without_any_fails_alone():
    captioner = build_captioner("metadata")
    samples = [{"caption": "one"}, {"caption": 3.5, "metadata": None}, {"title": "three"}]
    requests = [Request(index=number, sample=sample) for number, sample in enumerate(samples)]
    first, second, third = (answer for some in captioner.answers(requests) for answer in some)
    assert (first.texts, third.texts) == (("one",), ("three",))
    assert isinstance(second.error, SampleError)
    assert second.error.reason == "no_caption"


def test_caption_of_sample_without_any_is_empty_where_the_recipe_says_so():
    assert captions({"key": "a"}, missing="empty") == ("",)


def test_fingerprint_of_captioners_differs_with_any_setting():
    changes = [{}, {"fields": ["title"]}, {"max_chars": 10}, {"missing": "empty"}, {"keyword_joiner": " "}]
    assert len({build_captioner("metadata", change).fingerprint for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("blip", {}, "allowed: metadata, openai"),
        ("metadata", {"field": ["title"]}, "unknown setting 'field'"),
        ("metadata", {"max_chars": 0}, "max_chars"),
        ("metadata", {"missing": "guess"}, "'fail' or 'empty'"),
        ("metadata", {"keyword_template": "no place for them"}, "keyword_template"),
    ],
)
def test_recipe_that_names_a_captioner_wrongly_says_what_is_allowed(name, settings, says):
    with pytest.raises(RecipeError, match=says):
        build_captioner(name, settings)
