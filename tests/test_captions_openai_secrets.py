"""Keys stay out of recipes, errors, records, logs and reprs, whatever a server says."""

from __future__ import annotations

import logging
import pickle

import pytest
from tests.chat_server import ChatServer

from tokenmill.captions.captioner import Request, build_captioner
from tokenmill.captions.openai_secrets import told
from tokenmill.errors import RecipeError, RunError

KEY = "sk-proj-Zq81mmVvTTeeh20aaQz"
GOOD = {"model": "small", "base_urls": "http://localhost:8000/v1"}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"api_key": KEY}, "unknown setting 'api_key'"),
        ({"api_key_env": KEY}, "must name an environment variable"),
        ({"api_key_env": {"key": KEY}}, "must name an environment variable"),
        ({"api_key_env": "AKIA5512ZZQ0XKQWM3V2L0FFXA12BB34CC"}, "api_key_env"),
        ({"base_urls": f"https://user:{KEY}@host/v1"}, "base_urls"),
        ({"base_urls": f"https://host/v1?api-key={KEY[8:]}"}, "base_urls"),
        ({"base_urls": ["http://host/v1", f"//x:{KEY}@host"]}, "base_urls"),
        ({"headers": {"Authorization": f"Bearer {KEY}"}}, "headers.Authorization"),
        ({"headers": {"X-Api-Key": KEY[8:]}}, "headers.X-Api-Key"),
        ({"headers": {"X-Custom": f"Bearer {KEY[8:]}"}}, "headers.X-Custom"),
        ({"headers": {KEY: "x"}}, "a name in headers"),
        ({"extra": {"metadata": {"api_key": KEY[8:]}}}, "extra.metadata.api_key"),
        ({"extra": {"user": KEY}}, "extra.user"),
        ({"model": KEY}, "model"),
        ({"concurrency": KEY}, "concurrency"),
    ],
)
def test_openai_key_in_a_recipe_is_refused_and_not_shown(settings, word):
    with pytest.raises(RecipeError) as refused:
        build_captioner("openai", {**GOOD, **settings})
    assert word in str(refused.value)
    assert KEY[8:] not in repr(refused.value)
    assert "ZZQ0" not in repr(refused.value)
    assert KEY[8:] not in repr(refused.value.__cause__)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "extra": {
                "max_completion_tokens": 9,
                "stop_token_ids": [1],
                "chat_template_kwargs": {"enable_thinking": False},
            }
        },
        {"extra": {"guided_regex": "[A-Z][a-z ]{10,200}", "response_format": {"type": "json_object"}}},
        {"base_urls": "https://x.example/openai/v1?api-version=2024-10-21"},
        {"headers": {"HTTP-Referer": "https://example.org/captions", "X-Title": "captions of pictures"}},
        {"model": "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "api_key_env": "OPENAI_API_KEY"},
        {
            "model": "hf-internal-testing/tiny-random-LlavaForConditionalGeneration",
            "api_key_env": "HF_TOKEN_2_FOR_CAPTIONS",
        },
        {"model": "/models/3f9c1b2ad47e4f60a6b1c0ffee123456/qwen.gguf"},
    ],
)
def test_openai_plain_settings_are_taken(settings):
    build_captioner("openai", {**GOOD, **settings})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"base_urls": "localhost:8000"}, "each must be"),
        ({"base_urls": []}, "base_urls"),
        ({"extra": {"messages": []}}, "messages"),
        ({"extra": {"stream": True}}, "stream"),
        ({"headers": {"X-A": "a\r\nX-B: c"}}, "header"),
        ({"headers": {"Content-Type": "text/plain"}}, "header"),
        ({"tries": 0}, "tries"),
        ({"detail": "medium"}, "detail"),
    ],
)
def test_openai_wrong_setting_is_refused(settings, word):
    with pytest.raises(RecipeError, match=word):
        build_captioner("openai", {**GOOD, **settings})


def test_openai_key_echoed_by_a_server_reaches_nothing(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CAPTION_KEY", "very-plain-key-4711")
    with ChatServer(script=("echo_key", "ok"), key="very-plain-key-4711") as server:
        captioner = build_captioner(
            "openai", {"model": "small", "base_urls": server.url, "api_key_env": "CAPTION_KEY", "tries": 1}
        )
        requests = [Request(index=i, sample={}, prompt="p") for i in range(2)]
        answers = [answer for batch in captioner.answers(requests) for answer in batch]
        (failed,) = [answer.error for answer in answers if answer.error]
        assert failed.message.startswith("the server answered 500: cannot do that; Authorization: … the key being …")
        shown = [repr(answers), repr(captioner), str(vars(captioner)), caplog.text, str(pickle.dumps(captioner))]
        captioner.close()
        monkeypatch.setenv("CAPTION_KEY", "another-key-4712")
        with pytest.raises(RunError, match="CAPTION_KEY") as refused:
            list(captioner.answers(requests))
    shown += [repr(refused.value), repr(refused.value.__context__), repr(refused.value.__cause__)]
    assert not [text for text in shown if "471" in text]


@pytest.mark.parametrize("key", ["two words", "caf\u00e9-key", "line\nbreak"])
def test_openai_unfit_key_is_refused_and_not_shown(key, monkeypatch):
    monkeypatch.setenv("CAPTION_KEY", key)
    captioner = build_captioner("openai", {**GOOD, "api_key_env": "CAPTION_KEY"})
    with pytest.raises(RunError, match="CAPTION_KEY") as refused:
        list(captioner.answers([]))
    assert key.split()[0] not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("Incorrect API key provided: sk-abcd1234efgh5678.", "Incorrect API key provided: …."),
        ("Authorization: Bearer abc.def", "Authorization: …"),
        ("see https://host.example/a?b=c or 10.1.2.3:8000", "see … or …"),
        ("at 0x7f3a12 in /tmp/x/y.py\n\ttrace", "at … in … trace"),
        ("request req-12ab34 5f0c1d2e-1111-2222-3333-444455556666 failed", "request … … failed"),
        ("x" * 300, "x" * 199 + "…"),
        (None, ""),
        ({"a": 1}, ""),
    ],
)
def test_told_leaves_out_what_may_not_be_stored(said, stored):
    assert told(said) == stored
