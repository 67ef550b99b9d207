"""An HTTP server on loopback that answers as it is told, lies included, and notes who asked for what and when."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType

Handler = BaseHTTPRequestHandler


@dataclass
class Request:
    """One request as the server saw it; times are monotonic seconds."""

    path: str
    started: float
    headers: dict[str, str]
    ended: float = 0.0


@dataclass
class PictureServer:
    """`answers` maps paths to what to do with the n-th request (from 0) for them; every other path is 404."""

    address: str = "127.0.0.1"
    answers: dict[str, Callable[[Handler, int], None]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> PictureServer:
        outer = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Threads(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # clients hang up on purpose

        self._lock = threading.Lock()
        self._server = Threads((self.address, 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str, host: str = "") -> str:
        return f"http://{host or self.address}:{self.port}{path}"

    def asked(self, path: str | None = None) -> list[Request]:
        with self._lock:
            return [request for request in self.requests if path is None or request.path == path]

    def forget(self) -> None:
        with self._lock:
            self.requests.clear()

    def most_at_once(self) -> int:
        events = sorted([(r.started, 1) for r in self.asked()] + [(r.ended, -1) for r in self.asked()])
        now = most = 0
        for _, change in events:
            now += change
            most = max(most, now)
        return most

    def _answer(self, handler: Handler) -> None:
        request = Request(handler.path, time.monotonic(), dict(handler.headers))
        with self._lock:
            count = sum(other.path == handler.path for other in self.requests)
            self.requests.append(request)
        handler.seen = request  # type: ignore[attr-defined]
        try:
            self.answers.get(handler.path, status(404))(handler, count)
        finally:
            request.ended = request.ended or time.monotonic()


def answer(
    handler: Handler, code: int, data: bytes = b"", headers: Iterable[tuple[str, str]] = (), length: int | None = None
) -> None:
    """Send an answer; `length` is what its Content-Length claims (the connection ends where that is not true)."""
    handler.seen.ended = time.monotonic()  # type: ignore[attr-defined]  # before the client can ask for the next
    handler.send_response(code)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)
    if length not in (None, len(data)):
        handler.close_connection = True


def sends(data: bytes, *headers: tuple[str, str], length: int | None = None) -> Callable[[Handler, int], None]:
    return lambda handler, count: answer(handler, 200, data, headers, length)


def status(code: int, *headers: tuple[str, str]) -> Callable[[Handler, int], None]:
    return lambda handler, count: answer(handler, code, b"no", headers)


def redirects(target: str, code: int = 302) -> Callable[[Handler, int], None]:
    return status(code, ("Location", target))


def first(
    number: int, before: Callable[[Handler, int], None], after: Callable[[Handler, int], None]
) -> Callable[[Handler, int], None]:
    """Answer the first so many requests one way, later ones another."""
    return lambda handler, count: (before if count < number else after)(handler, count)


def resets(handler: Handler, count: int) -> None:
    handler.connection.close()
    handler.close_connection = True


def slowly(data: bytes, seconds: float) -> Callable[[Handler, int], None]:
    def send(handler: Handler, count: int) -> None:
        time.sleep(seconds)
        answer(handler, 200, data)

    return send


def without_length(data: bytes) -> Callable[[Handler, int], None]:
    """Send a body that ends with the connection, as HTTP/1.0 does."""

    def send(handler: Handler, count: int) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = True

    return send
