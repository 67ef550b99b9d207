"""The engine `openai` with servers that die, come back, refuse, or never were there."""

from __future__ import annotations

import itertools
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chat_server import ChatServer

from tokenmill.captions.captioner import Answer, Captioner, EncodedPicture, Request, build_captioner
from tokenmill.errors import RunError


def captioner_of(*servers: ChatServer, **settings: Any) -> Captioner:
    return build_captioner("openai", {"model": "small", "base_urls": [one.url for one in servers], **settings})


def requests(number: int) -> Iterator[Request]:
    return (Request(index=i, sample={}, prompt=f"prompt {i}", seed=i) for i in range(number))


def answered(captioner: Captioner, number: int) -> list[Answer]:
    try:
        return [answer for batch in captioner.answers(requests(number)) for answer in batch]
    finally:
        captioner.close()


def test_openai_servers_share_the_requests():
    with ChatServer(delay_ms=10) as one, ChatServer(delay_ms=10) as other:
        answers = answered(captioner_of(one, other, concurrency=8), 100)
        shares = len(one.received()), len(other.received())
    assert sorted(answer.index for answer in answers) == list(range(100))
    assert sum(shares) == 100
    assert min(shares) >= 30


def test_openai_killed_server_is_left_out_and_its_requests_go_to_the_other():
    with ChatServer(delay_ms=20) as one, ChatServer(delay_ms=20) as other:
        captioner = captioner_of(one, other, concurrency=16, tries=2)
        found: list[Answer] = []
        for batch in captioner.answers(requests(300)):
            found += batch
            if one.process.returncode is None and len(found) >= 60:
                one.kill()
        captioner.close()
        num_asked = len(one.received()) + len(other.received())
    assert sorted(answer.index for answer in found) == list(range(300))
    assert all(answer.texts for answer in found)
    assert num_asked <= 300 + 16


def test_openai_server_killed_and_restarted_twice_answers_each_request_once():
    kills = iter([60, 150])
    with ChatServer(delay_ms=20) as server:
        captioner = captioner_of(server, concurrency=16, tries=1)
        found: list[Answer] = []
        at = next(kills)
        for batch in captioner.answers(requests(250)):
            found += batch
            if len(found) >= at:
                server.kill()
                time.sleep(0.3)  # nobody listens for a while
                server.restart()
                at = next(kills, 10**9)
        captioner.close()
        asked = server.asked()
    assert sorted(answer.index for answer in found) == list(range(250))
    failed = [answer.error for answer in found if answer.error]
    assert not failed
    assert asked.total() <= 250 + 2 * 16
    assert len(asked) == 250


def test_openai_two_servers_refuse_and_one_is_the_first_to_come_back():
    with ChatServer() as one, ChatServer() as other:
        one.kill()
        other.kill()
        captioner = captioner_of(one, other, concurrency=4)
        started = time.monotonic()

        def source() -> Iterator[Request]:
            yield from requests(4)
            other.restart()
            yield from (Request(index=i, sample={}, prompt=f"prompt {i}") for i in range(4, 20))

        found = [answer for batch in captioner.answers(source()) for answer in batch]
        captioner.close()
    assert len(found) == 20
    assert all(answer.texts for answer in found)
    assert time.monotonic() - started < 10


def test_openai_no_server_for_outage_s_ends_the_run_and_names_the_last_fault():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
    captioner = build_captioner("openai", {"model": "small", "base_urls": url, "outage_s": 1.0})
    with pytest.raises(RunError, match=r"no server has answered anything for 1 s .*unreachable.*run again"):
        answered(captioner, 100)


def test_openai_server_that_only_refuses_ends_the_run_after_outage_s():
    with ChatServer(busy_s=100, retry_after="3600") as server:
        captioner = captioner_of(server, outage_s=0.5)
        started = time.monotonic()
        with pytest.raises(RunError, match=r"last fault: http_429"):
            answered(captioner, 10)
        assert time.monotonic() - started < 5


def test_openai_answers_before_an_outage_are_handed_over():
    with ChatServer() as server:
        captioner = captioner_of(server, concurrency=4, outage_s=0.6)
        found = []
        running = captioner.answers(requests(1000))
        with pytest.raises(RunError, match="no server has answered"):
            for batch in running:
                found += batch
                if len(found) > 40 and server.process.returncode is None:
                    server.kill()
        assert len(found) > 40
        server.restart()
        assert len(answered(captioner, 5)) == 5  # asking again begins anew


def test_openai_lone_request_that_a_living_server_never_answers_fails_by_itself():
    with ChatServer(faults={"http_503": 1.0}) as server:
        (answer,) = answered(captioner_of(server, tries=2), 1)
    assert answer.error is not None
    assert answer.error.reason == "http_503"


@pytest.mark.parametrize("status", [401, 403])
def test_openai_refused_key_ends_the_run_and_names_the_variable(status, monkeypatch):
    monkeypatch.setenv("CAPTION_KEY", "quite-a-secret-4711")
    with ChatServer(script=(f"http_{status}",) * 4) as server:
        captioner = captioner_of(server, api_key_env="CAPTION_KEY", concurrency=4)
        with pytest.raises(RunError, match=rf"refused the key \({status}\).*CAPTION_KEY") as refused:
            answered(captioner, 100)
        assert len(server.received()) <= 4
    assert "4711" not in repr(refused.value)


def test_openai_403_of_a_server_that_has_worked_is_about_the_request_alone():
    with ChatServer(script=("ok", "http_403")) as server:
        answers = answered(captioner_of(server, concurrency=1), 3)
    assert [answer.error.reason if answer.error else None for answer in answers] == [None, "refused_by_server", None]


def test_openai_wrong_model_ends_the_run_and_lists_the_models():
    wrong = pytest.raises(RunError, match=r"knows no model 'small'.*it lists: caption-7b")
    with ChatServer(model="caption-7b") as server, wrong:
        answered(captioner_of(server), 100)


def test_openai_variable_without_a_key_ends_the_run_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("CAPTION_KEY", raising=False)
    with ChatServer() as server:
        captioner = captioner_of(server, api_key_env="CAPTION_KEY")
        with pytest.raises(RunError, match="environment variable CAPTION_KEY"):
            answered(captioner, 10)
        assert server.received() == []


def test_openai_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("CAPTION_KEY", "quite-a-secret-4711")
    with ChatServer() as thief, ChatServer(script=(f"redirect:{thief.url}/chat/completions",)) as server:
        captioner = captioner_of(server, api_key_env="CAPTION_KEY")
        with pytest.raises(RunError, match=r"redirects \(307\) to 127.0.0.1"):
            answered(captioner, 1)
        assert thief.received() == []


def test_openai_no_credit_ends_the_run():
    with ChatServer(script=("http_402",)) as server, pytest.raises(RunError, match="no credit left"):
        answered(captioner_of(server), 1)


def test_openai_memory_stays_flat_over_many_requests():
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    shown = (EncodedPicture(data=bytes(20_000), media_type="image/jpeg"),)
    source = (Request(index=i, sample={}, prompt="what?", seed=i, pictures=shown) for i in itertools.count())
    with ChatServer() as server:
        captioner = captioner_of(server, concurrency=32)
        num_answers, early = 0, 0
        for batch in captioner.answers(itertools.islice(source, 1500)):
            num_answers += len(batch)
            if num_answers > 500 and not early:
                early = resident_bytes()
        captioner.close()
    assert num_answers == 1500
    assert resident_bytes() - early < 12_000_000
