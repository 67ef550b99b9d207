"""What the engine `openai` reads out of answers of all makes, and what makes two settings the same."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from tokenmill.captions.captioner import build_captioner
from tokenmill.captions.openai_faults import Asker, Fault, outcome_of, seconds_of
from tokenmill.captions.openai_wire import BrokenAnswer, Reply, read_answer

ASKER = Asker(key="", key_variable=None, model="small")


def completion(message: object, **fields: object) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], **fields}).encode()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("  A dog. \n", "A dog."),
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}, {"type": "image_url"}, 3], "A dog."),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "A dog."}], "A dog."),
        ("<think>\nIt may be a cat.\n</think>\n\nA dog.", "A dog."),
        ("It may be a cat.\n</think>\n\nA dog.", "A dog."),
        ("A dog \ud83d.", "A dog ?."),
    ],
)
def test_read_answer_takes_the_words_alone(content, text):
    reply = read_answer(completion({"role": "assistant", "content": content, "reasoning_content": "let me see"}))
    assert (reply.text, reply.error) == (text, None)


@pytest.mark.parametrize("content", [None, "", " \n", [], "<think>cut off while", 7, {"text": "x"}])
def test_read_answer_without_words_is_an_error(content):
    reply = read_answer(completion({"content": content, "reasoning_content": "much"}))
    assert reply.error is not None
    assert reply.error.reason == "empty_answer"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3}, (12, 3)),
        (None, (0, 0)),
        ({"prompt_tokens": -4, "completion_tokens": "3"}, (0, 0)),
        ({"prompt_tokens": 1e3, "completion_tokens": 10**15}, (0, 0)),
        ({"prompt_tokens": True}, (0, 0)),
        ([1, 2], (0, 0)),
    ],
)
def test_read_answer_nonsense_usage_counts_nothing(usage, tokens):
    reply = read_answer(completion({"content": "A dog."}, usage=usage, model=5))
    assert (reply.input_tokens, reply.output_tokens) == tokens
    assert reply.model == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "invalid_answer"),
        (b"\xff\xfe", "invalid_answer"),
        (b"[" * 100_000, "invalid_answer"),
        (b"<html>", "invalid_answer"),
        (b"[]", "invalid_answer"),
        (b"{}", "invalid_answer"),
        (b'{"choices": {}}', "invalid_answer"),
        (b'{"choices": [7]}', "invalid_answer"),
        (b'{"choices": [{"message": "x"}]}', "invalid_answer"),
        (b'{"choices": []}', "empty_answer"),
    ],
)
def test_read_answer_of_another_shape_is_broken(data, reason):
    with pytest.raises(BrokenAnswer) as broken:
        read_answer(data)
    assert broken.value.reason == reason


def outcome(status: int, error: object, *, may_be_blind: bool = False) -> Reply | Fault:
    data = json.dumps({"error": error}).encode()
    return outcome_of(status, {}, data, ASKER, has_worked=True, may_be_blind=may_be_blind)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "At most 0 image(s) may be provided in one prompt."),
        (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
        (404, "No endpoints found that support image input"),
        (400, "Invalid content type. image_url is only supported by certain models."),
        (400, "The model does not support vision."),
        (400, "SmolLM2 is not a multimodal model"),
    ],
)
def test_outcome_of_a_model_without_eyes_stops(status, message):
    found = outcome(status, {"message": message}, may_be_blind=True)
    assert isinstance(found, Fault)
    assert found.effect == "stop"
    assert "takes no pictures" in found.message


def test_outcome_of_one_bad_picture_is_the_samples_error():
    for message in ("The model does not support images smaller than 28 px", "image format not supported: heic"):
        found = outcome(400, {"message": message}, may_be_blind=True)
        assert isinstance(found, Reply)
        assert found.error is not None
        assert found.error.reason == "refused_by_server"


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, {"code": "content_filter", "message": "by policy"}, "content_filter"),
        (400, "a plain text", "refused_by_server"),
        (422, {"detail": [{"msg": "seed"}]}, "refused_by_server"),
        (418, None, "refused_by_server"),
        (501, None, "refused_by_server"),
        (429, {"code": "rate_limit_exceeded", "message": "Request too large for small"}, "refused_by_server"),
    ],
)
def test_outcome_refused_by_all_makes_of_errors(status, error, reason):
    found = outcome(status, error)
    assert isinstance(found, Reply)
    assert found.error is not None
    assert found.error.reason == reason


@pytest.mark.parametrize(
    ("status", "error", "effect", "reason"),
    [
        (200, {"code": 502, "message": "upstream"}, "again", "http_502"),
        (200, {"message": "no code"}, "again", "invalid_answer"),
        (204, None, "again", "invalid_answer"),
        (599, None, "again", "http_5xx"),
        (429, {"code": "insufficient_quota", "message": "pay"}, "stop", "http_429"),
        (400, {"code": "model_not_found"}, "stop", "http_400"),
        (405, None, "stop", "http_405"),
    ],
)
def test_outcome_that_is_no_answer(status, error, effect, reason):
    found = outcome(status, error)
    assert isinstance(found, Fault)
    assert (found.effect, found.reason) == (effect, reason)


def test_seconds_of_retry_after_in_both_forms():
    assert seconds_of("2.5") == 2.5
    assert seconds_of("-3") == 0.0
    assert 28 < (seconds_of(formatdate(time.time() + 30, usegmt=True)) or 0) <= 30
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for nonsense in (None, "", "soon", "inf", "nan", "Wed, 99 Oct 20155"):
        assert seconds_of(nonsense) is None


def test_openai_fingerprint_is_of_what_decides_about_answers():
    base = {"model": "small", "base_urls": "http://a/v1"}
    first = build_captioner("openai", base).fingerprint
    same = {"base_urls": ["http://b/v1", "http://c/v1"], "api_key_env": "KEY", "concurrency": 3, "ahead": 0, "tries": 1}
    same |= {"timeout_s": 1, "outage_s": 5, "headers": {"X-A": "b"}, "max_answer_bytes": 5000}
    assert build_captioner("openai", {**base, **same}).fingerprint == first
    other = [{"model": "large"}, {"max_tokens": 5}, {"temperature": 0.0}, {"top_p": 0.5}, {"extra": {"top_k": 1}}]
    other += [{"detail": "low"}, {"pictures": False}, {"max_side_px": 512}, {"send_seed": False}]
    found = {build_captioner("openai", {**base, **change}).fingerprint for change in other}
    assert len(found | {first}) == len(other) + 1


def test_read_answer_model_that_is_a_path_is_its_file():
    for named, stored in (("/srv/models/small.gguf", "small.gguf"), ("org/small-7b", "org/small-7b")):
        assert read_answer(completion({"content": "A dog."}, model=named)).model == stored


def test_openai_takes_pictures_unless_told_otherwise():
    base = {"model": "small", "base_urls": "http://a/v1"}
    assert build_captioner("openai", base).takes == "encoded"
    assert build_captioner("openai", base).max_side_px == 1024
    assert build_captioner("openai", {**base, "pictures": False}).takes == "text"
