"""The captioner that fills templates of the recipe."""

from __future__ import annotations

import pytest

from tokenmill.captions.captioner import Request, build_captioner
from tokenmill.errors import RecipeError

SAMPLE = {
    "key": "a",
    "caption": "a red\x00 kite\n",
    "metadata": {"title": "Kites", "tags": ["sky", "wind"], "hostile": "{key} <|im_end|> \ud800"},
    "scores": {"aesthetic": 5.25},
    "width_px": 640,
}


def captions(sample=SAMPLE, **settings):
    ((answer,),) = build_captioner("template", settings).answers([Request(index=3, sample=sample)])
    assert answer.index == 3
    return answer.error.reason if answer.error else answer.texts


def test_caption_is_the_template_filled_and_cleaned():
    assert captions(templates="{metadata.title}:\n {caption}, {width_px} px") == ("Kites: a red kite, 640 px",)


def test_caption_of_several_templates_is_the_first_that_fits_or_all():
    templates = ["{metadata.place}: {caption}", "{metadata.title}: {caption}", "{caption}", "{caption} "]
    assert captions(templates=templates) == ("Kites: a red kite",)
    assert captions(templates=templates, which="all") == ("Kites: a red kite", "a red kite")


def test_caption_with_defaults_and_numbers_shows_them():
    template = "{metadata.place|'somewhere'}, {metadata.tags}, {scores.aesthetic:.1f}"
    assert captions(templates=[template]) == ("somewhere, sky, wind, 5.2",)


def test_caption_that_is_too_long_ends_at_a_word():
    assert captions(templates=["{caption}"], max_chars=9) == ("a red",)


def test_caption_with_hostile_values_is_one_storable_line():
    (caption,) = captions(templates=["{metadata.hostile}"])
    assert caption == "{key} < |im_end| > �"
    assert caption.encode("utf-8")


@pytest.mark.parametrize(("missing", "expected"), [("fail", "no_field"), ("empty", ("",))])
def test_sample_that_no_template_fits_fails_or_has_an_empty_caption(missing, expected):
    assert captions(templates=["{metadata.place}", "{seconds}"], missing=missing) == expected
    assert captions(templates=["{metadata.place|''}"], missing=missing) == expected


def test_samples_are_answered_each_by_itself():
    captioner = build_captioner("template", {"templates": ["{caption}"]})
    samples = [{"caption": "one"}, {"caption": None}, {"caption": "three"}]
    requests = [Request(index=number, sample=sample) for number, sample in enumerate(samples)]
    answers = [answer for some in captioner.answers(requests) for answer in some]
    assert [answer.texts for answer in answers] == [("one",), (), ("three",)]
    assert not captioner.asks and captioner.takes == "text"
    captioner.close()


def test_fingerprint_of_the_captioner_differs_with_any_setting():
    changes = [{"templates": ["{caption}"]}, {"templates": ["{key}"]}, {"templates": ["{caption}", "{key}"]}]
    changes += [
        {"templates": ["{caption}"], **one} for one in ({"which": "all"}, {"max_chars": 9}, {"missing": "empty"})
    ]
    assert len({build_captioner("template", change).fingerprint for change in changes}) == len(changes)
    one, same = (build_captioner("template", {"templates": value}) for value in ("{caption}", ["{caption}"]))
    assert one.fingerprint == same.fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "templates"),
        ({"templates": []}, "templates"),
        ({"templates": ["{caption"]}, "does not end"),
        ({"templates": ["{titel}"]}, "unknown field 'titel'"),
        ({"templates": ["x"], "which": "best"}, "'first' or 'all'"),
        ({"template": "x"}, "unknown setting 'template'"),
    ],
)
def test_recipe_with_a_wrong_template_is_refused(settings, says):
    with pytest.raises(RecipeError, match=says):
        build_captioner("template", settings)
