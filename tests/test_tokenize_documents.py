"""The contract of documents: lengths without ids, loss weights, pieces, JSON, and what is refused."""

from __future__ import annotations

import json
from time import perf_counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenmill.errors import ManifestError, RecipeError, SampleError
from tokenmill.tokenize.documents import (
    TextSegment,
    VisionSegment,
    assemble,
    assembled_length,
    segments_from_json,
    segments_to_json,
)
from tokenmill.tokenize.templates import TEMPLATES
from tokenmill.tokenize.text import text_tokenizer_names
from tokenmill.tokenize.vocabulary import build_vocabulary, byte_vocabulary

VOCABULARY = byte_vocabulary(64)
ROLES = ["caption", "body", "system", "user", "assistant"]


@st.composite
def samples(draw):
    """Draw segments with arrays that hold what they name."""
    segments, num_text, num_codes = [], 0, 0
    for _ in range(draw(st.integers(1, 6))):
        learn = draw(st.booleans())
        if draw(st.booleans()):
            end = num_text + draw(st.integers(0, 9))
            segments.append(TextSegment(num_text, end, draw(st.sampled_from(ROLES)), learn, draw(st.integers(0, 1))))
            num_text = end
        else:
            t, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
            clip = (draw(st.floats(0.1, 120)), draw(st.floats(0.1, 600))) if t > 1 or draw(st.booleans()) else ()
            segments.append(VisionSegment(t, h, w, num_codes, *clip, learn=learn))
            num_codes += t * h * w
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    return (
        segments,
        random.integers(0, 256, num_text).astype(np.uint32),
        random.integers(0, 64, num_codes).astype(np.uint16),
    )


@given(sample=samples(), template=st.sampled_from(sorted(TEMPLATES)), variant=st.integers(0, 1))
@settings(max_examples=300, deadline=None)
def test_assembled_length_of_any_sample_equals_the_assembled_ids(sample, template, variant):
    segments, text_ids, codes = sample
    try:
        length = assembled_length(segments, template, VOCABULARY, variant)
    except SampleError as refused:
        with pytest.raises(SampleError, match=refused.reason):
            assemble(segments, text_ids, codes, template, VOCABULARY, variant)
        return
    document = assemble(segments, text_ids, codes, template, VOCABULARY, variant)
    assert length == len(document.ids) == len(document.weights)
    assert document.weights[0] == 0
    assert document.ids[0] == VOCABULARY.bos
    assert document.ids[-1] == VOCABULARY.eos
    assert document.ids.dtype == np.int32
    assert document.ids.max() < VOCABULARY.size


@given(sample=samples())
@settings(max_examples=100, deadline=None)
def test_segments_through_json_come_back_equal(sample):
    segments = sample[0]
    assert segments_from_json(json.loads(json.dumps(segments_to_json(segments)))) == segments


@given(sample=samples(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_pieces_of_a_document_joined_are_the_document(sample, data):
    segments, text_ids, codes = sample
    assume(any(getattr(segment, "role", None) == "body" for segment in segments))
    document = assemble(segments, text_ids, codes, "interleaved", VOCABULARY)
    cut = data.draw(st.integers(1, len(document.ids) - 1))
    first, last = document.piece(0, cut), document.piece(cut, len(document.ids) - cut)
    assert np.array_equal(np.concatenate([first.ids, last.ids]), document.ids)
    assert last.weights[0] == 0
    assert np.array_equal(last.weights[1:], document.weights[cut + 1 :])


TEXT = np.frombuffer(b"hiyo", np.uint8).astype(np.uint32)
PICTURE = VisionSegment(1, 1, 2, 0)


@pytest.mark.parametrize(
    ("segments", "template", "expected"),
    [
        # BOS h i | SOV 1 * 2 SOT c c EOL EOF EOV | EOS
        ([TextSegment(0, 2, "caption"), PICTURE], "generation", [0, 1, 1, *[0.5] * 10, 0.5]),
        ([TextSegment(0, 2, "caption", learn=False), PICTURE], "generation", [0, 0, 0, *[0.5] * 10, 0.5]),
        ([TextSegment(0, 2, "caption"), PICTURE], "understanding", [0, *[0.5] * 10, 1, 1, 1]),
        ([TextSegment(0, 2, "body")], "language", [0, 1, 1, 1]),
        ([TextSegment(0, 2, "body", learn=False)], "language", [0, 0, 0, 0]),
    ],
)
def test_weights_of_a_template_follow_the_segments(segments, template, expected):
    document = assemble(segments, TEXT, np.array([1, 2]), template, VOCABULARY)
    assert document.weights.tolist() == expected


def test_weights_of_chat_learn_the_answer_and_its_end_alone():
    segments = [
        VisionSegment(1, 1, 2, 0, learn=False),
        TextSegment(0, 2, "user", learn=False),
        TextSegment(2, 4, "assistant"),
    ]
    document = assemble(segments, TEXT, np.array([1, 2]), "chat", VOCABULARY)
    learned = document.ids[document.weights > 0].tolist()
    assert learned == [ord("y"), ord("o"), VOCABULARY.eos]


def test_weights_with_vision_alone_still_learn_row_and_frame_ends():
    segments = [TextSegment(0, 2, "caption"), PICTURE]
    document = assemble(segments, TEXT, np.array([1, 2]), "generation", VOCABULARY, vision_weight=1, text_weight=0)
    learned = set(document.ids[document.weights > 0].tolist())
    assert {VOCABULARY.eol, VOCABULARY.eof, VOCABULARY.eov, VOCABULARY.eos} <= learned
    assert document.weights[1:3].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("segments", "template", "variant", "reason"),
    [
        ([PICTURE], "generation", 0, "no_text"),
        ([TextSegment(0, 2, "caption"), PICTURE], "generation", 1, "no_text"),
        ([TextSegment(0, 2, "body")], "understanding", 0, "no_vision"),
        ([TextSegment(0, 2, "body")], "unconditional", 0, "no_vision"),
        ([TextSegment(0, 2, "user")], "chat", 0, "no_answer"),
        ([TextSegment(0, 2, "assistant")], "chat", 0, "no_answer"),
        ([TextSegment(0, 9, "body")], "language", 0, "out_of_range"),
        ([VisionSegment(1, 2, 2, 0)], "unconditional", 0, "out_of_range"),
    ],
)
def test_sample_that_lacks_what_the_template_needs_is_refused_with_its_reason(segments, template, variant, reason):
    with pytest.raises(SampleError) as refused:
        assemble(segments, TEXT, np.array([1, 2]), template, VOCABULARY, variant)
    assert refused.value.reason == reason


@pytest.mark.parametrize(("text_id", "code"), [(256, 0), (0, 64)])
def test_ids_outside_the_vocabulary_are_refused(text_id, code):
    segments = [TextSegment(0, 1, "caption"), VisionSegment(1, 1, 1, 0)]
    with pytest.raises(SampleError, match="out_of_range"):
        assemble(segments, np.array([text_id]), np.array([code]), "generation", VOCABULARY)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": [3, 1], "role": "body"},
        {"text": [0, 1], "role": "poet"},
        {"text": [0, 1]},
        {"text": 3, "role": "body"},
        {"vision": [2, 1, 1], "offset": 0},
        {"vision": [1, 0, 1], "offset": 0},
        {"vision": [1, 1], "offset": 0},
        {"vision": [1, 1, 1], "offset": 0, "fps": 8},
        {},
    ],
)
def test_json_that_is_no_segment_is_refused(fields):
    with pytest.raises(ManifestError):
        segments_from_json([fields])


def test_unknown_template_names_the_known_ones():
    with pytest.raises(RecipeError, match="generation"):
        assembled_length([], "poem", VOCABULARY)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"name": "morse"},
        {"name": "emu3"},
        {"name": "bytes", "path": "x"},
        {"name": "bytes", "codebook_size": 0},
        {"name": "bytes", "codebook_size": "many"},
    ],
)
def test_vocabulary_spec_that_is_wrong_is_refused(spec):
    with pytest.raises(RecipeError):
        build_vocabulary(spec)


def test_compact_vocabulary_has_every_id_once_and_comes_back_from_its_spec():
    names = [VOCABULARY.describe(index) for index in range(128, VOCABULARY.size)]
    markers = names[128:138]
    assert len(set(markers)) == 10
    assert names[138] == "<|visual token 000000|>"
    assert names[-1] == "<|visual token 000063|>"
    assert build_vocabulary(VOCABULARY.spec).fingerprint == VOCABULARY.fingerprint
    with pytest.raises(ValueError, match="outside"):
        VOCABULARY.describe(VOCABULARY.size)


def test_vision_mask_covers_codes_and_the_ends_of_rows_frames_and_pictures():
    segments = [TextSegment(0, 2, "caption"), PICTURE]
    document = assemble(segments, TEXT, np.array([1, 2]), "generation", VOCABULARY)
    assert VOCABULARY.vision_mask(document.ids).tolist() == [False] * 8 + [True] * 5 + [False]


def test_text_tokenizers_list_the_built_in_names():
    assert {"bytes", "qwen"} <= set(text_tokenizer_names())


def test_assembling_a_picture_of_4096_codes_takes_well_under_a_millisecond():
    codes = np.zeros(4096, np.uint16)
    segments = [TextSegment(0, 4, "caption"), VisionSegment(1, 64, 64, 0)]
    times = []
    for _ in range(50):
        start = perf_counter()
        assemble(segments, TEXT, codes, "generation", VOCABULARY)
        times.append(perf_counter() - start)
    assert min(times) < 1e-3
