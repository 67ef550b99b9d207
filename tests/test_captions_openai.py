"""The engine `openai` over a real socket: what it sends, what it makes of answers, and of each fault of a server."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from tests.chat_server import ChatServer, made_up

from tokenmill.captions.captioner import Answer, EncodedPicture, Request, build_captioner
from tokenmill.errors import RunError


@pytest.fixture
def ask() -> Iterator[Callable[..., list[Answer]]]:
    """Ask a server for some requests; returns the answers in the order of the requests."""
    built = []

    def answers(server: ChatServer, requests: Any, **settings: Any) -> list[Answer]:
        captioner = build_captioner("openai", {"model": "small", "base_urls": server.url, **settings})
        built.append(captioner)
        found = [answer for batch in captioner.answers(requests) for answer in batch]
        return sorted(found, key=lambda answer: answer.index)

    yield answers
    for captioner in built:
        captioner.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "tokenmill-openai"]


def requests(number: int, **fields: Any) -> list[Request]:
    return [Request(index=i, sample={}, prompt=f"prompt {i}", seed=i, **fields) for i in range(number)]


def picture() -> EncodedPicture:
    data = io.BytesIO()
    Image.effect_noise((64, 48), 60).save(data, "JPEG")
    return EncodedPicture(data=data.getvalue(), media_type="image/jpeg")


def test_openai_answers_carry_text_usage_and_model(ask):
    with ChatServer() as server:
        (answer,) = ask(server, requests(1, system="Be brief."), temperature=0.5, extra={"top_k": 3})
        (seen,) = server.received()
    body = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "prompt 0"}],
        "seed": 0,
    }
    assert answer.texts == (made_up(body),)
    assert (answer.model, answer.finish_reason, answer.error) == ("small", "stop", None)
    assert (answer.usage.requests, answer.usage.input_tokens, answer.usage.retried) == (1, 4, {})
    assert answer.usage.output_tokens == len(answer.texts[0].split())
    assert seen["body"] == {"model": "small", "max_tokens": 512, "temperature": 0.5, "top_k": 3, "seed": 0}


def test_openai_pictures_arrive_whole_and_in_order(ask):
    shown = (picture(), picture(), EncodedPicture(data=b"\x89PNG", media_type="image/png"))
    with ChatServer() as server:
        ask(server, requests(1, pictures=shown), detail="low")
        (seen,) = server.received()
    urls = [f"data:{one.media_type};base64,{base64.b64encode(one.data).decode()}" for one in shown]
    assert seen["pictures"] == [hashlib.sha256(url.encode()).hexdigest()[:16] for url in urls]
    assert seen["prompt"] == "prompt 0"


def test_openai_many_large_frames_are_sent(ask):
    frames = tuple(EncodedPicture(data=bytes(200_000), media_type="image/jpeg") for _ in range(12))
    with ChatServer() as server:
        (answer,) = ask(server, requests(1, pictures=frames))
        assert len(server.received()[0]["pictures"]) == 12
    assert answer.texts


AGAIN = {
    "http_408": "http_408",
    "http_409": "http_409",
    "http_425": "http_425",
    "http_429": "http_429",
    "http_500": "http_500",
    "http_502": "http_502",
    "http_503": "http_503",
    "http_529": "http_5xx",
    "html_502": "http_502",
    "html": "invalid_answer",
    "invalid_json": "invalid_answer",
    "garbage": "invalid_answer",
    "no_choices": "empty_answer",
    "reset": "reset",
    "reset_in_answer": "reset",
    "timeout": "timeout",
}


def test_openai_faults_are_asked_again_and_counted(ask):
    with ChatServer(script=tuple(AGAIN)) as server:
        answers = ask(server, requests(len(AGAIN)), timeout_s=0.5)
        met = {one["prompt"]: one["fault"] for one in server.received() if one["fault"] != "ok"}
        assert set(server.asked().values()) == {2}
    assert sorted(met.values()) == sorted(AGAIN)
    for answer in answers:
        assert answer.texts
        assert answer.error is None
        assert answer.usage.requests == 2
        assert answer.usage.retried == {AGAIN[met[f"prompt {answer.index}"]]: 1}


FINAL = {
    "http_400": ("refused_by_server", "errs as it was told"),
    "http_413": ("refused_by_server", "413"),
    "http_422": ("refused_by_server", "422"),
    "huge": ("answer_too_long", "max_answer_bytes"),
    "bomb": ("answer_too_long", "max_answer_bytes"),
    "empty_content": ("empty_answer", "no text"),
    "refusal": ("refusal", "can't help"),
    "content_filter": ("content_filter", "filter"),
}


def test_openai_requests_that_no_try_would_help_fail_at_once_and_alone(ask):
    with ChatServer(script=tuple(FINAL)) as server:
        answers = ask(server, requests(len(FINAL) + 3), concurrency=1)
        assert set(server.asked().values()) == {1}
    for answer, (reason, word) in zip(answers, FINAL.values(), strict=False):
        assert answer.texts == ()
        assert answer.error is not None
        assert (answer.error.reason, answer.error.transient) == (reason, False)
        assert word in answer.error.message
        assert answer.usage.requests == 1
    assert all(answer.texts for answer in answers[len(FINAL) :])


def test_openai_tries_used_up_fail_the_request_alone(ask):
    with ChatServer(script=("ok", "http_503", "http_500", "ok")) as server:
        _, failed, third = ask(server, requests(3), concurrency=1, tries=2)
    assert third.texts
    assert failed.error is not None
    assert (failed.error.reason, failed.error.transient) == ("http_500", True)
    assert failed.usage.retried == {"http_503": 1, "http_500": 1}
    assert failed.usage.requests == 2
    assert "tried 2 times" in failed.error.message


def test_openai_five_percent_faults_lose_nothing_and_are_counted(ask):
    shares = {"timeout": 0.01, "http_503": 0.02, "reset": 0.01, "reset_in_answer": 0.01}
    with ChatServer(delay_ms=10, faults=shares, seed=3) as server:
        answers = ask(server, requests(400), concurrency=32, timeout_s=0.5)
        met = Counter(one["fault"] for one in server.received())
    assert [answer.index for answer in answers] == list(range(400))
    assert all(answer.texts and answer.error is None for answer in answers)
    counted: Counter[str] = Counter()
    for answer in answers:
        counted.update(answer.usage.retried)
    assert counted == {
        "timeout": met["timeout"],
        "http_503": met["http_503"],
        "reset": met["reset"] + met["reset_in_answer"],
    }
    assert min(counted.values()) >= 1
    assert sum(answer.usage.requests for answer in answers) == met.total()


def test_openai_retry_after_holds_the_whole_server_and_costs_no_try(ask):
    with ChatServer(script=("http_429",) * 4, retry_after="1") as server:
        answers = ask(server, requests(12), concurrency=4, tries=1)
        seen = server.received()
    assert all(answer.texts for answer in answers)
    refused = [one["time"] for one in seen if one["fault"] == "http_429"]
    after = [one["time"] for one in seen if one["fault"] == "ok"]
    assert len(refused) == 4
    assert min(after) - max(refused) > 0.7


def test_openai_many_refused_at_once_are_one_refusal(ask):
    with ChatServer(script=("http_429",) * 32) as server:
        started = time.monotonic()
        answers = ask(server, requests(32), concurrency=32, tries=1)
        assert server.asked().total() == 64
    assert all(answer.texts for answer in answers)
    assert time.monotonic() - started < 12  # 32 refusals one after the other would mean half a minute


def test_openai_request_told_forever_to_come_later_fails_by_itself(ask):
    with ChatServer(delay_ms=5, poison={"prompt 7": "http_429"}, retry_after="0.05") as server:
        answers = ask(server, requests(70), concurrency=2, outage_s=0.3)
    failed = {answer.index: answer.error for answer in answers if answer.error}
    assert set(failed) == {7}
    assert (failed[7].reason, failed[7].transient) == ("http_429", True)


def test_openai_busy_server_costs_time_not_tries(ask):
    with ChatServer(busy_s=1.0, retry_after="0.3") as server:
        answers = ask(server, requests(20), concurrency=4, tries=1)
    assert all(answer.texts for answer in answers)
    assert sum(answer.usage.retried.get("http_429", 0) for answer in answers) >= 4


def test_openai_server_that_loads_its_model_costs_no_try(ask):
    with ChatServer(script=("loading",) * 4) as server:
        answers = ask(server, requests(4), tries=1)
    assert all(answer.texts for answer in answers)


def test_openai_no_more_is_pulled_than_is_worked_on():
    pulled = stored = most = 0

    def source() -> Iterator[Request]:
        nonlocal pulled, most
        for request in requests(100):
            pulled += 1
            most = max(most, pulled - stored)
            yield request

    with ChatServer(delay_ms=20) as server:
        settings = {"model": "small", "base_urls": server.url, "concurrency": 8}
        for ahead in (0, 4):
            pulled = stored = most = 0
            captioner = build_captioner("openai", {**settings, "ahead": ahead})
            for batch in captioner.answers(source()):
                stored_now = len(batch)
                time.sleep(0.002)  # as storing takes
                stored += stored_now
            captioner.close()
            assert (pulled, stored, most) == (100, 100, 8 + ahead)
        assert max(one["at_once"] for one in server.received()) <= 8


def test_openai_requests_on_the_wire_go_on_while_the_next_is_decoded():
    answered = threading.Event()

    def source() -> Iterator[Request]:
        yield from requests(4)
        while len(server.received()) < 4:
            time.sleep(0.01)
        answered.set()  # reached only if the four were sent while this iterator holds the caller's thread
        yield Request(index=4, sample={}, prompt="late")

    with ChatServer() as server:
        captioner = build_captioner("openai", {"model": "small", "base_urls": server.url, "concurrency": 16})
        found = [answer.index for batch in captioner.answers(source()) for answer in batch]
        captioner.close()
    assert answered.is_set()
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_openai_slow_answer_holds_nobody_up(ask):
    with ChatServer(script=("timeout",)) as server:
        captioner = build_captioner(
            "openai", {"model": "small", "base_urls": server.url, "concurrency": 4, "timeout_s": 1.0}
        )
        order = [answer.index for batch in captioner.answers(requests(40)) for answer in batch]
        captioner.close()
    assert order[-1] == 0
    assert sorted(order) == list(range(40))


def test_openai_abandoned_generator_drops_what_is_under_way_and_can_begin_again():
    with ChatServer(delay_ms=50) as server:
        captioner = build_captioner("openai", {"model": "small", "base_urls": server.url, "concurrency": 4, "ahead": 0})
        running = captioner.answers(iter(requests(100)))
        next(running)
        running.close()
        asked = len(server.received())
        assert asked <= 8
        again = [answer for batch in captioner.answers(requests(5)) for answer in batch]
        assert len(again) == 5
        assert len(server.received()) == asked + 5
        captioner.close()
        captioner.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "tokenmill-openai"]


def test_openai_closed_while_it_is_asked_tells_the_caller():
    with ChatServer(delay_ms=50) as server:
        captioner = build_captioner("openai", {"model": "small", "base_urls": server.url, "concurrency": 4})
        running = captioner.answers(requests(100))
        next(running)
        captioner.close()
        with pytest.raises(RuntimeError, match="closed while"):
            list(running)
    assert not [thread for thread in threading.enumerate() if thread.name == "tokenmill-openai"]


def test_openai_error_of_the_source_reaches_the_caller():
    def source() -> Iterator[Request]:
        yield from requests(2)
        raise KeyboardInterrupt

    with ChatServer(delay_ms=20) as server:
        captioner = build_captioner("openai", {"model": "small", "base_urls": server.url})
        with pytest.raises(KeyboardInterrupt):
            list(captioner.answers(source()))
        captioner.close()


def test_openai_process_interrupted_in_mid_run_ends_without_complaints():
    program = """
import itertools
from tokenmill.captions.captioner import Request, build_captioner
captioner = build_captioner("openai", {"model": "small", "base_urls": "URL", "concurrency": 8})
running = captioner.answers(Request(index=i, sample={}, prompt=str(i)) for i in itertools.count())
next(running)
raise KeyboardInterrupt
"""
    with ChatServer(delay_ms=30) as server:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", program.replace("URL", server.url)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    for complaint in ("destroyed", "nclosed", "never awaited", "ignored", "Warning"):
        assert complaint not in done.stderr


def test_openai_model_without_eyes_ends_the_run(ask):
    blind = pytest.raises(RunError, match=r"'small' takes no pictures .*; ask a vision model, or set pictures: false")
    with ChatServer(script=("no_pictures",)) as server, blind:
        ask(server, requests(1, pictures=(picture(),)))


def test_openai_picture_refused_by_a_model_with_eyes_is_the_samples_error(ask):
    with ChatServer(script=("ok", "no_pictures")) as server:
        answers = ask(server, requests(3, pictures=(picture(),)), concurrency=1)
    assert [answer.usage.requests for answer in answers] == [1, 1, 1]
    assert [answer.error.reason if answer.error else None for answer in answers] == [None, "refused_by_server", None]
