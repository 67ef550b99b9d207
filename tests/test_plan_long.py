"""Documents longer than the context: pages in parts, conversations by their leading turns; and who shows a picture."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.drawing import drawn_of

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_long import fitting
from tokenmill.pipelines.plan_spans import Document, piece_weights, spans_between
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Segment, document_atoms, document_spans
from tokenmill.tokenize.segments import TextSegment, VisionSegment, segment_from_json, segment_to_json
from tokenmill.tokenize.templates import chat, lay_out
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(64)
PICTURE = VisionSegment(1, 2, 2, 0)  # 13 ids: SOV 2 * 2 SOT, (2 codes EOL) twice, EOF, EOV
PICTURE_IDS = 13


def whole(segments: list[Segment], template: str = "interleaved") -> Document:
    return Document(sample=0, template=template, variant=0, spans=document_spans(segments, template, V))


def texts(*lengths: int) -> list[Segment]:
    return [TextSegment(0, length, "body") for length in lengths]


@given(lengths=st.lists(st.one_of(st.none(), st.integers(1, 200)), min_size=1, max_size=12))
def test_parts_of_any_page_fit_and_add_up_and_begin_at_no_inside_of_a_picture(lengths):
    segments: list[Segment] = [PICTURE if n is None else TextSegment(0, n, "body") for n in lengths]
    settings = PlanSettings(context=64, split_long_pages=True)
    document = whole(segments)
    if document.length <= settings.context:
        return
    parts = fitting(document, segments, settings, V)
    assert [part.start for part in parts] == [sum(p.length for p in parts[:n]) for n in range(len(parts))]
    assert sum(part.length for part in parts) == document.length
    assert all(0 < part.length <= settings.context for part in parts)
    position, insides = 0, set[int]()
    for length, may_cut in document_atoms(segments, "interleaved", V):
        insides |= set() if may_cut else set(range(position + 1, position + length))
        position += length
    assert not insides & {part.start for part in parts}
    assert position == document.length


def test_page_with_a_picture_longer_than_the_context_is_refused():
    segments = [*texts(3), VisionSegment(1, 9, 9, 0), *texts(3)]
    with pytest.raises(SampleError, match="a picture of 97 ids does not fit the context of 64") as refused:
        fitting(whole(segments), segments, PlanSettings(context=64, split_long_pages=True), V)
    assert refused.value.reason == "too_long"


@pytest.mark.parametrize("template", ["interleaved", "chat"])
def test_long_document_is_refused_unless_the_recipe_says_otherwise(template):
    turns = [TextSegment(0, 90, "user", learn=False), TextSegment(0, 5, "assistant")]
    segments = [*texts(90)] if template == "interleaved" else turns
    with pytest.raises(SampleError) as refused:
        fitting(whole(segments, template), segments, PlanSettings(context=64), V)
    assert refused.value.reason == "too_long"


def test_conversation_whose_first_turn_is_too_long_is_refused():
    segments = [TextSegment(0, 90, "user", learn=False), TextSegment(0, 5, "assistant")]
    with pytest.raises(SampleError, match="the first turn is") as refused:
        fitting(whole(segments, "chat"), segments, PlanSettings(context=64, shorten_long_chats=True), V)
    assert refused.value.reason == "too_long"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_spans_between_weigh_what_the_piece_of_the_whole_weighs(lengths, data):
    spans = [(length, ("text", "vision", "none")[n % 3]) for n, length in enumerate(lengths)]
    start = data.draw(st.integers(0, sum(lengths) - 1))
    end = data.draw(st.integers(start + 1, sum(lengths)))
    cut = spans_between(spans, start, end)
    assert piece_weights(cut, 0, end - start) == piece_weights(spans, start, end - start)


def says(role: str, learn: bool | None = None) -> TextSegment:
    return TextSegment(0, 1, role, learn=role == "assistant" if learn is None else learn)  # type: ignore[arg-type]


def shows(learn: bool = True, role: str | None = None) -> VisionSegment:
    return VisionSegment(1, 2, 2, 0, learn=learn, role=role)  # type: ignore[arg-type]


U, A, S = says("user"), says("assistant"), says("system")


@pytest.mark.parametrize(
    ("segments", "speakers"),
    [
        ([shows(), U, A], "uua"),  # a picture's questions: the picture opens the first
        ([U, shows(), A], "uua"),  # an answer follows: it is part of the question, whatever it teaches
        ([U, shows()], "ua"),
        ([U, shows(), U, A], "uaua"),
        ([U, shows(learn=False), U, A], "uuua"),
        ([U, A, shows(), U, A], "uauua"),  # between an answer and a question: the question's
        ([U, A, shows()], "uaa"),
        ([U, shows(role="assistant"), A], "uaa"),
        ([U, A, shows(role="user"), U, A], "uauua"),
        ([U, A, S, U, A], "uauua"),  # the system's words later on stand in the question they precede
        ([S, U, A], "ua"),
    ],
)
def test_chat_gives_every_picture_to_whose_turn_it_is(segments, speakers):
    parts = chat(segments, V)
    opens, closes = V.encode_literal(" USER: "), V.encode_literal(". ASSISTANT:")
    speaker, found = "", ""
    for part in parts:
        ids = getattr(part, "ids", None)
        speaker = "u" if ids == opens else "a" if ids == closes else speaker
        is_shown = isinstance(part, TextSegment | VisionSegment)
        found += speaker if is_shown else ""
    assert found == speakers


@pytest.mark.parametrize("segments", [[A], [U], [shows()], [U, A, U], [A, U, A], [S], [U, A, S], [U, shows(False)]])
def test_chat_without_question_or_answer_is_refused(segments):
    with pytest.raises(SampleError) as refused:
        lay_out(segments, "chat", V)
    assert refused.value.reason == "no_answer"


def test_conversation_is_no_page_and_a_page_no_conversation():
    with pytest.raises(SampleError) as refused:
        lay_out([shows(), U, A], "interleaved", V)
    assert refused.value.reason == "no_page"
    with pytest.raises(SampleError):
        lay_out([shows(), *texts(3)], "chat", V)


def test_document_draws_among_the_templates_that_fit_it():
    captions = [TextSegment(0, 1, "caption"), TextSegment(1, 2, "caption", variant=1)]
    kinds = {"chat": [shows(), U, A], "interleaved": [shows(), *texts(3)], "image": [shows(), *captions]}
    for kind, segments in kinds.items():
        told = json.dumps([segment_to_json(segment) for segment in segments])
        rows = [{"key": f"k{n}", "modality": "document", "segments": told} for n in range(80)]
        drawn, refused, rows_in = drawn_of(rows, PlanSettings(), V)
        found = {drawn.document(number).template for number in range(len(drawn))}
        assert found == ({kind} if kind != "image" else {"generation", "understanding", "unconditional"})
        assert (len(drawn), rows_in, refused.count) == (80, 80, 0)
        assert set(drawn.variant) == ({0, 1} if kind == "image" else {0})


def test_conversation_that_the_assistant_opens_is_refused_for_that_whatever_is_drawn_first():
    told = json.dumps([segment_to_json(one) for one in (says("assistant"), says("user"), says("assistant"))])
    rows = [{"key": f"k{n}", "modality": "document", "segments": told} for n in range(40)]
    drawn, refused, _ = drawn_of(rows, PlanSettings(), V)
    assert len(drawn) == 0
    assert refused.dropped == {"no_answer": 40}


def test_role_of_a_picture_goes_through_json():
    for segment in (shows(role="assistant"), shows(learn=False, role="user"), shows()):
        assert segment_from_json(segment_to_json(segment)) == segment
    assert "role" not in segment_to_json(shows())
