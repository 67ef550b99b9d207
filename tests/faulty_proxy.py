"""A reverse proxy on loopback that does to a store's requests what networks and overloaded stores do.

    with FaultyProxy(server.endpoint, rate=0.05, seed=1) as proxy:
        open_store(url, {**server.options, "endpoint": proxy.endpoint})

Real sockets: a reset is a TCP reset, a truncated body breaks off in the middle, a stall keeps the connection open and
says nothing. Which request is hit is drawn from a seeded generator; `hits` counts what was done.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlsplit

_REFUSALS = {
    "503": (503, "SlowDown"),
    "429": (429, "TooManyRequests"),
    "429-retry-after": (429, "TooManyRequests"),
    "501": (501, "NotImplemented"),
    "409": (409, "ConditionalRequestConflict"),
}
KINDS = ("503", "429", "429-retry-after", "reset", "lost-answer", "truncate", "stall")


@dataclass(frozen=True)
class Message:
    """A request or an answer: its first line, its headers as they came, its body."""

    start: bytes
    headers: list[bytes]
    body: bytes

    @property
    def bytes(self) -> bytes:
        return b"".join([self.start, *self.headers, b"\r\n", self.body])

    @property
    def method(self) -> str:
        return self.start.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.start.split(b" ")[1].decode()


class FaultyProxy:
    """Forwards to `upstream`; `rate` of the requests meet one of `kinds`.

    `gone` resets every connection; `answers` maps a method to a (status, S3 error code) it always gets instead.
    """

    def __init__(
        self, upstream: str, *, rate: float = 0.0, seed: int = 0, kinds: Sequence[str] = KINDS, stall_s: float = 3.0
    ) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.rate, self.kinds, self.stall_s = rate, kinds, stall_s
        self.gone = False
        self.gone_after: int | None = None  # requests
        self.gone_since = 0.0  # of time.monotonic
        self.answers: dict[str, tuple[int, str]] = {}
        self.script: list[str] = []  # what the next requests meet, before chance decides
        self.hits: Counter[str] = Counter()
        self.requests = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultyProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, ValueError), client, client.makefile("rb") as stream:
            upstream: socket.socket | None = None
            while request := read_message(stream, client=client):
                fault = self._fault(request)
                if fault == "reset":
                    _reset(client)
                    return
                if fault in _REFUSALS or fault == "answer":
                    client.sendall(self._refusal(fault, request))
                    continue
                if upstream is None:
                    upstream = socket.create_connection(self._upstream)
                    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    answers = upstream.makefile("rb")
                upstream.sendall(request.bytes)
                answer = read_message(answers, to=request.method)
                if answer is None:
                    return
                if fault == "lost-answer":
                    _reset(client)
                    return
                if fault == "truncate":
                    client.sendall(answer.bytes[: len(answer.bytes) - max(1, len(answer.body) // 2)])
                    return
                if fault == "stall":
                    time.sleep(self.stall_s)
                    return
                client.sendall(answer.bytes)

    def _fault(self, request: Message) -> str:
        with self._lock:
            self.requests += 1
            if self.gone_after is not None and self.requests > self.gone_after and not self.gone:
                self.gone, self.gone_since = True, time.monotonic()
            if self.gone:
                return "reset"
            if request.method in self.answers:
                return "answer"
            drawn = self._random.random() < self.rate
            fault = self.script.pop(0) if self.script else self._random.choice(self.kinds) if drawn else ""
            if fault:
                self.hits[fault] += 1
            return fault

    def _refusal(self, fault: str, request: Message) -> bytes:
        status, code = self.answers.get(request.method, (503, "ServiceUnavailable"))
        if fault != "answer":
            status, code = _REFUSALS[fault]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        wait = b"Retry-After: 1\r\n" if fault == "429-retry-after" else b""
        head = f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(body)}\r\nContent-Type: application/xml\r\n".encode()
        return head + wait + b"\r\n" + (b"" if request.method == "HEAD" else body)


def _reset(client: socket.socket) -> None:
    """Have the socket closed with a TCP reset instead of a farewell (by the last of its files)."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def read_message(stream: IO[bytes], *, to: str | None = None, client: socket.socket | None = None) -> Message | None:
    """Read a whole request, or the whole answer `to` a method; None where the other side has hung up."""
    start = stream.readline()
    if not start:
        return None
    headers = list(iter(stream.readline, b"\r\n"))
    if b"" in headers[-1:]:
        return None
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in headers)}
    if client is not None and fields.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        headers = [line for line in headers if not line.lower().startswith(b"expect:")]
    if to == "HEAD" or start.split(b" ")[1] in (b"204", b"304"):
        return Message(start, headers, b"")
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return Message(start, headers, _chunks(stream))
    return Message(start, headers, stream.read(int(fields.get(b"content-length", b"0"))))


def _chunks(stream: IO[bytes]) -> bytes:
    """Read a chunked body as it stands, with its frames."""
    found = []
    while True:
        head = stream.readline()
        body = stream.read(int(head.split(b";")[0], 16) + 2)
        found += [head, body]
        if body == b"\r\n":
            return b"".join(found)
