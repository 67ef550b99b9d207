"""Captions, conversations about pictures and what is said of stretches of a clip, as documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.asked_captioner import install
from tests.asking import AskedRoot
from tests.drawing import documents_of

from tokenmill.errors import ManifestError, SampleError
from tokenmill.pipelines.plan_spans import Document
from tokenmill.pipelines.tokens_clip import document_length
from tokenmill.pipelines.tokens_words import Words, with_vision
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import assemble, assembled_length, segments_from_json, segments_to_json
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.segments import Segment, VisionSegment
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(64)
PICTURE = VisionSegment(1, 1, 2, 0)
CLIP = VisionSegment(6, 1, 2, 0, fps=1.0, seconds=24.0)
CODES = np.zeros(12, np.uint16)
PAIRS = ({"question": "how many", "answer": "two", "column": "qa"}, {"question": "red", "answer": "no", "column": "qa"})
PIECES = tuple(
    {"variant": 1, "start_seconds": 8.0 * n, "end_seconds": 8.0 * (n + 1), "text": text}
    for n, text in enumerate(("first", "second", "third"))
)
WORDS = Words(captions=["short", "first second third"], columns=["original", "dense"], pieces=PIECES, questions=PAIRS)


def segments_of(words: Words, vision: VisionSegment) -> tuple[list[Segment], np.ndarray[Any, Any]]:
    texts, ids = words.segments(V.text.encode)
    return with_vision(texts, vision), ids


def shown(words: Words, vision: VisionSegment, template: str, variant: int = 0) -> str:
    """Return the text ids of a document as letters; what is learned of them in capitals."""
    segments, ids = segments_of(words, vision)
    document = assemble(segments, ids, CODES, template, V, variant)
    pairs = zip(document.ids.tolist(), document.weights.tolist(), strict=True)
    return "".join(chr(one).upper() if weight else chr(one) for one, weight in pairs if one < 128)


def test_templates_of_pictures_show_captions_and_chat_shows_questions() -> None:
    assert shown(WORDS, PICTURE, "generation") == "SHORT1*2"
    assert shown(WORDS, PICTURE, "understanding", 1) == "1*2FIRST SECOND THIRD"
    assert shown(WORDS, PICTURE, "unconditional") == "1*2"
    assert shown(WORDS, PICTURE, "language") == "SHORT"
    assert shown(WORDS, PICTURE, "interleaved") == "SHORT1*2"
    chat = "You are a helpful assistant. USER: 1*2how many. ASSISTANT:TWO USER: red. ASSISTANT:NO"
    assert shown(WORDS, PICTURE, "chat") == chat


def test_sample_with_questions_alone_is_a_chat_and_nothing_with_captions() -> None:
    segments, _ = segments_of(Words(questions=PAIRS), PICTURE)
    for template in ("generation", "understanding", "language"):
        with pytest.raises(SampleError, match="no_text"):
            assembled_length(segments, template, V)
    with pytest.raises(SampleError, match="no_answer"):
        assembled_length(segments_of(Words(captions=["a"]), PICTURE)[0], "chat", V)


RUNS = [(0, 2, 0), (2, 2, 1), (4, 2, 2), (1, 2, 0), (1, 3, 1), (0, 6, 0), (5, 1, 2)]  # frame, frames, stretch


@pytest.mark.parametrize(("start", "count", "stretch"), RUNS)
def test_run_of_a_clip_says_what_was_said_of_the_stretch_it_shares_most_of(
    start: int, count: int, stretch: int
) -> None:
    segments, ids = segments_of(WORDS, CLIP)
    cut = take_frames(segments, start, count)
    document = assemble(cut, ids, CODES, "understanding", V, 1)
    text = "".join(chr(one) for one in document.ids.tolist() if one < 128)
    assert [word for word in ("first", "second", "third") if word in text] == [PIECES[stretch]["text"]]
    assert assemble(cut, ids, CODES, "generation", V, 0).ids.tolist()[1:6] == list(b"short"), "has no stretches"


def test_segments_of_captions_alone_are_what_they_always_were() -> None:
    segments, _ = segments_of(Words(captions=["ab", "c"], columns=["caption"] * 2), PICTURE)
    told = {"role": "caption", "learn": True}
    first, second = {"text": [0, 2], "variant": 0, **told}, {"text": [2, 3], "variant": 1, **told}
    assert segments_to_json(segments) == [first, second, {"vision": [1, 1, 2], "offset": 0}]


def test_stretches_come_back_from_json_and_want_their_times() -> None:
    segments, _ = segments_of(WORDS, CLIP)
    described = json.loads(json.dumps(segments_to_json(segments)))
    assert segments_from_json(described) == segments
    assert [one["seconds"] for one in described if one.get("role") == "stretch"] == [
        [0.0, 8.0],
        [8.0, 16.0],
        [16.0, 24.0],
    ]
    for wrong in ({"role": "stretch"}, {"role": "caption", "seconds": [0, 1]}, {"role": "stretch", "seconds": [1]}):
        with pytest.raises(ManifestError):
            segments_from_json([{"text": [0, 1], **wrong}])


def test_document_names_columns_where_the_recipe_named_them() -> None:
    assert Words(captions=["a"], columns=["caption"]).described == {"captions": ["a"]}
    assert WORDS.described["caption_columns"] == ["original", "dense"]
    assert WORDS.described["questions"] == list(PAIRS)
    assert WORDS.described["caption_pieces"] == list(PIECES)


def test_longest_document_of_a_clip_may_be_its_conversation() -> None:
    texts, _ = WORDS.segments(V.text.encode)
    assert document_length(CLIP, texts, V) == assembled_length([CLIP, *texts], "chat", V)
    captions, _ = Words(captions=["a", "abc"]).segments(V.text.encode)
    assert document_length(CLIP, captions, V) == assembled_length([*captions, CLIP], "generation", V, 1)
    pairs, _ = Words(questions=PAIRS).segments(V.text.encode)
    assert document_length(CLIP, pairs, V) == assembled_length([CLIP, *pairs], "chat", V)
    assert document_length(CLIP, [], V) == assembled_length([CLIP], "unconditional", V)


def drawn(words: Words, vision: VisionSegment, **settings: Any) -> list[Document]:
    plan = PlanSettings(held_out=0.0, **settings)
    segments, _ = segments_of(words, vision)
    row = {"key": "k", "modality": "video", "segments": json.dumps(segments_to_json(segments))}
    return documents_of(row, plan, V)


def test_plan_draws_among_the_templates_that_fit_a_sample() -> None:
    templates = {"video": {"chat": 0.5, "generation": 0.5}}
    assert drawn(Words(captions=["a"]), CLIP, templates=templates)[0].template == "generation"
    assert drawn(Words(questions=PAIRS), CLIP, templates=templates)[0].template == "chat"


def test_plan_counts_a_run_with_the_words_of_its_stretch() -> None:
    """Two latent frames of six fit, so there are three runs, each as long as its own document."""
    only = Words(captions=["first second third"], columns=["dense"], pieces=[{**one, "variant": 0} for one in PIECES])
    runs = drawn(only, CLIP, context=32, split_long_clips=True, templates={"video": {"generation": 1}})
    segments, ids = segments_of(only, CLIP)
    assert len(runs) > 1
    for run in runs:
        document = assemble(take_frames(segments, run.frame, run.frames), ids, CODES, run.template, V, run.variant)
        assert len(document.ids) == run.length <= 32


def test_plan_refuses_a_clip_of_which_a_later_stretch_is_said_in_too_many_words() -> None:
    pieces = [{**one, "variant": 0, "text": "long " * 9 if n == 2 else "a"} for n, one in enumerate(PIECES)]
    words = Words(captions=["whole"], columns=["dense"], pieces=pieces)
    with pytest.raises(SampleError, match="one latent frame does not fit"):
        drawn(words, replace(CLIP, t=12), context=48, split_long_clips=True, templates={"video": {"generation": 1}})


def test_pairs_go_from_answers_to_the_archive_and_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    asked = AskedRoot(folder=tmp_path, shards=1)
    prompt = "pairs\nQ: What is {metadata.title}?\nA: A picture"
    columns = {
        "dense": asked.column(),
        "qa": asked.column(prompt=prompt, form="questions"),
    }
    asked.changes["caption.image"] = {"columns": columns}
    asked.fail(**{"00001": "refuse"})
    (commit, *_) = (snapshot := asked.run().tokenize["scenes"]).commits
    rows = snapshot.folder.read_rows(commit).rows(named=True)
    first = segments_from_json(json.loads(rows[0]["segments"]))
    assert [one.role or "vision" for one in first] == ["caption", "vision", "user", "assistant"]
    path = snapshot.folder.at(commit.file("data").name)
    document = json.loads(snapshot.folder.store.read_range(path, rows[0]["json_offset"], rows[0]["json_length"]))
    (pair,) = document["questions"]
    assert (pair["question"], pair["column"]) == (f"What is no. {rows[0]['key']}?", "qa")
    assert pair["answer"].startswith("A picture")
    assert document["caption_columns"] == ["dense"]
    second = segments_from_json(json.loads(rows[1]["segments"]))
    assert [one.role or "vision" for one in second] == ["vision", "user", "assistant"], "no caption of its own"
