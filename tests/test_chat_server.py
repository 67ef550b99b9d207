"""The stand-in for a model server keeps what others' tests rely on: who asked what, on the same port after a kill."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.chat_server import ChatServer


def _ask(server: ChatServer, prompt: str, **body: Any) -> Any:
    body = {"model": "small", "messages": [{"role": "user", "content": prompt}], **body}
    request = urllib.request.Request(f"{server.url}/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())


def test_chat_server_killed_and_restarted_keeps_port_and_log():
    with ChatServer(model="small") as server:
        port = server.settings.port
        first = _ask(server, "one", seed=1)
        server.kill()
        with pytest.raises(urllib.error.URLError):
            _ask(server, "two")
        server.restart()
        again, other = _ask(server, "one", seed=1), _ask(server, "one", seed=2)
        assert server.settings.port == port
        assert server.asked() == {"one": 3}
        assert [one["seed"] for one in server.received()] == [1, 1, 2]
    assert first == again != other
    assert first["usage"]["prompt_tokens"] == 1


def test_chat_server_script_then_shares_decide_the_faults():
    with ChatServer(script=("http_503", "ok", "html"), faults={"http_429": 1.0}, retry_after="3") as server:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            _ask(server, "a")
        _ask(server, "b")
        with pytest.raises(json.JSONDecodeError):
            _ask(server, "c")
        with pytest.raises(urllib.error.HTTPError) as refused:
            _ask(server, "d")
        assert refused.value.headers["Retry-After"] == "3"
        refused.value.close()
        assert [one["fault"] for one in server.received()] == ["http_503", "ok", "html", "http_429"]


def test_chat_server_reset_cuts_the_connection():
    with ChatServer(script=("reset", "reset_in_answer")) as server:
        for _ in range(2):
            with pytest.raises((OSError, urllib.error.URLError, socket.error)):
                _ask(server, "a")
