"""Layouts of many documents are those of the reference, one by one: `lay_out`, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmill.errors import ManifestError, RecipeError, SampleError
from tokenmill.tokenize.documents import document_spans, segments_from_json, segments_to_json
from tokenmill.tokenize.layouts import (
    LOSS_NONE,
    LOSS_TEXT,
    LOSS_VISION,
    MARKER,
    TEXT,
    VISION,
    join_scanned,
    lay_out_many,
    lay_out_scanned,
    scan_segments,
)
from tokenmill.tokenize.segments import ANSWERS, TextSegment, VisionSegment
from tokenmill.tokenize.templates import PAIR_TEMPLATES, TEMPLATES, Marker, lay_out
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(64)
LOSSES = {"none": LOSS_NONE, "text": LOSS_TEXT, "vision": LOSS_VISION}


answers = st.sampled_from([None, None, "chosen", "rejected"])


@st.composite
def texts(draw):
    start = draw(st.integers(0, 400))
    role = draw(st.sampled_from(["caption", "caption", "body", "system", "user", "assistant", "assistant", "stretch"]))
    seconds = (0.5, draw(st.sampled_from([1.0, 2.25]))) if role == "stretch" else None
    end = start + draw(st.integers(0, 3_000))
    return TextSegment(start, end, role, draw(st.booleans()), draw(st.integers(0, 2)), seconds, draw(answers))


@st.composite
def visions(draw):
    is_clip = draw(st.booleans())
    frames = draw(st.integers(1, 5)) if is_clip else 1
    clip = (draw(st.sampled_from([8.0, 23.976])), draw(st.floats(0.125, 9, width=32))) if is_clip else (None, None)
    side = st.sampled_from([1, 8, 9, 64])
    return VisionSegment(frames, draw(side), draw(side), draw(st.integers(0, 10**8)), *clip, draw(st.booleans()),
                         draw(st.sampled_from([None, "user", "assistant"])), draw(answers))  # fmt: skip


samples = st.lists(st.one_of(texts(), visions()), max_size=6)
WRITTEN = {"usual": {}, "compact": {"separators": (",", ":")}, "indented": {"indent": 1}}


@settings(max_examples=150, deadline=None)
@given(st.lists(samples, min_size=1, max_size=6), st.sampled_from(sorted(TEMPLATES)), st.integers(0, 2), st.data())
def test_layouts_of_any_samples_are_those_of_the_reference(found, template, variant, data):
    variants = np.array([data.draw(st.sampled_from([variant, 0])) for _ in found])
    written = [
        json.dumps(segments_to_json(one), **WRITTEN[data.draw(st.sampled_from(sorted(WRITTEN)))]) for one in found
    ]
    _check(written, template, variants)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(samples, max_size=2), min_size=1, max_size=3), st.data())
def test_layouts_of_strings_scanned_apart_are_those_of_the_strings_they_stand_for(groups, data):
    taken, expected = [], []
    for group in groups:
        written = [json.dumps(segments_to_json(one)) for one in group]
        places = data.draw(st.lists(st.integers(0, len(group) - 1), max_size=6)) if group else []
        taken.append(scan_segments(pa.array(written, pa.large_string())).taken(np.array(places, np.int64)))
        expected += [written[place] for place in places]

    joined, _ = lay_out_scanned(join_scanned(taken), np.arange(len(expected)), "interleaved", 0, V)

    whole, _ = lay_out_many(expected, "interleaved", 0, V)
    np.testing.assert_array_equal(joined.offsets, whole.offsets)
    assert [_told(joined, place) for place in range(whole.offsets[-1])] == [
        _told(whole, place) for place in range(whole.offsets[-1])
    ]


def _check(written, template, variants):
    layouts, errors = lay_out_many(written, template, variants, V)
    assert len(errors) == len(written) == len(layouts.offsets) - 1
    for number, text in enumerate(written):
        here = slice(layouts.offsets[number], layouts.offsets[number + 1])
        segments = segments_from_json(json.loads(text))
        try:
            parts = lay_out(segments, template, V, int(variants[number]))
        except SampleError as error:
            assert (errors[number].reason, errors[number].message) == (error.reason, error.message)
            assert here.start == here.stop
            continue
        assert errors[number] is None
        spans = document_spans(segments, template, V, int(variants[number]))
        assert layouts.totals[number] == sum(length for length, _ in spans)
        assert layouts.length[here].tolist() == [length for length, _ in spans]
        assert layouts.loss[here].tolist() == [LOSSES[loss] for _, loss in spans]
        assert [_told(layouts, place) for place in range(here.start, here.stop)] == [_part(part) for part in parts]


def _told(layouts, place):
    kind, start, length = layouts.kind[place], int(layouts.start[place]), int(layouts.length[place])
    if kind == MARKER:
        return tuple(layouts.marker_ids[start : start + length].tolist())
    if kind == TEXT:
        return ("text", start, start + length, layouts.rows[place], layouts.columns[place])
    assert kind == VISION
    return ("vision", start, length, int(layouts.rows[place]), int(layouts.columns[place]))


def _part(part):
    if isinstance(part, Marker):
        return part.ids
    if isinstance(part, TextSegment):
        return ("text", part.start, part.end, 0, 0)
    return ("vision", part.offset, part.num_grid_ids, part.h, part.w)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_layouts_of_ten_thousand_lengths_share_one_structure_and_keep_their_own(template):
    def page(n):
        turns = [TextSegment(0, n, "user"), TextSegment(n, 2 * n, "assistant")]
        answers = [replace(turns[1], answer=answer) for answer in ANSWERS] if template in PAIR_TEMPLATES else []
        return [TextSegment(0, n + 1, "caption"), VisionSegment(1, 8, 8, 64 * n), *turns, *answers]

    written = [json.dumps(segments_to_json(page(n))) for n in range(10_000)]
    layouts, errors = lay_out_many(written, template, 0, V)
    assert errors == [None] * 10_000
    for number in (0, 1, 9, 10, 99, 100, 4_321, 9_999):
        one, _ = lay_out_many([written[number]], template, 0, V)
        here = slice(layouts.offsets[number], layouts.offsets[number + 1])
        assert [_told(layouts, place) for place in range(here.start, here.stop)] == [
            _told(one, place) for place in range(one.offsets[-1])
        ]
    _check(written[4_000:4_003], template, np.zeros(3, int))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '[{"text": [5, 2], "role": "body"}]',
        '[{"text": [05, 7], "role": "body"}]',
        '[{"text": [-1, 7], "role": "body"}]',
        '[{"text": [1.5, 7], "role": "body"}]',
        '[{"text": [0, 99999999999], "role": "body"}]',
        '[{"text": [0, 7], "role": "poem"}]',
        '[{"text": [0, 7]}]',
        '[{"vision": [0, 8, 8], "offset": 0}]',
        '[{"vision": [1, 8, 8.5], "offset": 0}, {"text": [0, 7], "role": "caption"}]',
        '[{"vision": [1, 8, 8], "offset": -4}]',
        '[{"vision": [2, 8, 8], "offset": 4}]',
        '[{"text": [0, 7], "role": "body"}] \x00',
        '[["text", [0, 7]]]',
    ],
)
def test_layouts_of_segments_that_are_none_say_bad_segments_and_spare_the_others(text):
    good = json.dumps(segments_to_json([TextSegment(0, 9, "caption"), VisionSegment(1, 8, 8, 0)]))
    layouts, errors = lay_out_many([good, text, good], "interleaved", 0, V)
    assert [error and error.reason for error in errors] == [None, "bad_segments", None]
    assert layouts.totals.tolist() == [layouts.totals[0], 0, layouts.totals[0]] and layouts.totals[0] > 64


def test_layouts_of_keys_that_look_like_segments_take_what_json_takes():
    tricky = '[{"text": [1, 2], "text": [3, 9], "role": "body"}, {"a\\"text": [7, 8], "text": [9, 11], "role": "body"}]'
    _check([tricky, tricky.replace("[3, 9]", "[30, 90]")], "language", np.zeros(2, int))


def test_layouts_of_nothing_are_empty_and_an_unknown_template_is_refused():
    layouts, errors = lay_out_many([], "language", 0, V)
    assert errors == [] and layouts.offsets.tolist() == [0] and len(layouts.totals) == 0
    with pytest.raises(RecipeError, match="no template 'poem'"):
        lay_out_many(["[]"], "poem", 0, V)
    with pytest.raises(ManifestError):
        segments_from_json([{"text": [5, 2], "role": "body"}])
