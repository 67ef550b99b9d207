"""Asks servers over HTTP until each request has an answer or has used up its tries. Runs in one event loop.

aiohttp, not the openai package: a text request costs 0.23 ms of CPU here and 2.3 ms there (httpx, pydantic models), one
with a picture of 100 kB 0.50 and 3.1 ms (benchmarks/chat_client.py --openai); at 1,280 requests/s that is a third of a
core or three. Its retries know neither servers that are down nor what a try has cost.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from tokenmill.captions.captioner import Answer, Usage
from tokenmill.captions.openai_faults import Asker, Fault, outcome_of
from tokenmill.captions.openai_secrets import told
from tokenmill.captions.openai_wire import BrokenAnswer, Question, Reply, as_object, model_name
from tokenmill.captions.server_pool import Server, ServerPool, back_off_s
from tokenmill.errors import RunError, SampleError

_CONNECT_S, _MODELS_S = 10.0, 10.0
_KEEP_ALIVE_S = 4.0  # uvicorn, under vLLM and SGLang, hangs up after 5
_BIG_BODY_BYTES = 2**20  # aiohttp warns of larger ones in one piece
_MOST_MODELS = 20
_OUTAGES = 2  # so long a request alone may be told to come later, while others are answered
_DOWN = (502, 503, 504)  # what gateways say when nobody is behind them


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long and how often; see the engine's settings of the same names."""

    timeout_s: float
    tries: int
    outage_s: float
    max_answer_bytes: int


@dataclass(kw_only=True)
class _Course:
    """How one request fares."""

    started: float = field(default_factory=time.monotonic)
    sent: int = 0
    tries: int = 0
    failing_since: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    last_server: Server | None = None

    def note(self, server: Server, fault: Fault) -> None:
        self.failing_since = self.failing_since or time.monotonic()
        self.last_server = server
        self.faults[fault.reason] += 1

    @property
    def failing_s(self) -> float:
        return time.monotonic() - self.failing_since


class Client:
    """Connections to the servers, while its event loop runs; `open` before anything else."""

    def __init__(self, urls: Sequence[str], headers: dict[str, str], asker: Asker, limits: Limits) -> None:
        self._asker, self._limits = asker, limits
        self._headers = {
            **headers,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        self.pool = ServerPool(urls, self._is_up, outage_s=limits.outage_s)
        self._chat_urls = {server.url: _page(server.url, "chat/completions") for server in self.pool.servers}
        self._checks: dict[str, asyncio.Task[bool]] = {}

    async def open(self) -> None:
        key = {"Authorization": f"Bearer {self._asker.key}"} if self._asker.key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**self._headers, **key},
            timeout=aiohttp.ClientTimeout(total=self._limits.timeout_s, sock_connect=_CONNECT_S),
        )

    async def close(self) -> None:
        await self.pool.close()
        await self._session.close()

    async def ask(self, question: Question) -> Answer:
        """Ask until there is an answer; raises RunError when nothing can work."""
        course = _Course()
        while True:
            server = await self.pool.acquire(course.last_server)
            sent_at = time.monotonic()
            try:
                outcome = await self._post(server, question)
            finally:
                self.pool.release(server)
            course.sent += not isinstance(outcome, Fault) or outcome.effect != "unreachable"
            if isinstance(outcome, Reply):
                self.pool.answered(server, has_seen=question.has_pictures and not outcome.error)
                return _answer(question.index, outcome, course)
            if outcome.effect == "stop":
                raise await self._hopeless(server, outcome)
            course.note(server, outcome)
            costs_try = await self.pool.costs_try(server, outcome, sent_at)
            course.tries += costs_try
            if course.tries >= self._limits.tries or course.failing_s > _OUTAGES * self._limits.outage_s:
                return _answer(question.index, _given_up(outcome, course), course)
            if costs_try:
                await asyncio.sleep(back_off_s(course.tries))

    async def _post(self, server: Server, question: Question) -> Reply | Fault:
        body = question.body
        data: bytes | io.BytesIO = body if len(body) <= _BIG_BODY_BYTES else io.BytesIO(body)
        try:
            url = self._chat_urls[server.url]
            async with self._session.post(url, data=data, allow_redirects=False) as answer:
                received = await _capped(answer, self._limits.max_answer_bytes)
                status, headers = answer.status, answer.headers
        except (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, ValueError) as error:
            return _fault_of(error, self._limits.timeout_s)
        if received is None:
            limit = f"more than {self._limits.max_answer_bytes} bytes (max_answer_bytes)"
            return Reply(error=SampleError("answer_too_long", limit))
        is_blind = question.has_pictures and not server.has_seen
        return outcome_of(status, headers, received, self._asker, has_worked=server.has_worked, may_be_blind=is_blind)

    async def _hopeless(self, server: Server, fault: Fault) -> RunError:
        message = f"{server.url}: {fault.message}"
        if "knows no model" in fault.message:
            names = await self._models(server)
            message += f"; it lists: {', '.join(names)}" if names else "; it lists no models: does its URL end in /v1?"
        return RunError(message)

    async def _is_up(self, server: Server) -> bool:
        """Say whether a server answers at all; those who ask at the same time share one request."""
        check = self._checks.get(server.url)
        if check is None:
            check = self._checks[server.url] = asyncio.get_running_loop().create_task(self._answers(server))
            check.add_done_callback(lambda _: self._checks.pop(server.url, None))
        return await asyncio.shield(check)

    async def _answers(self, server: Server) -> bool:
        status, _ = await self._get_models(server)
        return status != 0 and status not in _DOWN

    async def _models(self, server: Server) -> list[str]:
        _, data = await self._get_models(server)
        try:
            listed = as_object(data).get("data")
        except BrokenAnswer:
            return []
        names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return [told(model_name(name), self._asker.key) for name in names if isinstance(name, str)][:_MOST_MODELS]

    async def _get_models(self, server: Server) -> tuple[int, bytes]:
        """Return status and body of the list of models; 0 if none came."""
        timeout = aiohttp.ClientTimeout(total=min(_MODELS_S, self._limits.timeout_s))
        try:
            async with self._session.get(_page(server.url, "models"), timeout=timeout, allow_redirects=False) as answer:
                return answer.status, await _capped(answer, self._limits.max_answer_bytes) or b""
        except (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, ValueError):
            return 0, b""


def _page(base_url: str, name: str) -> URL:
    """Return a page under a base URL, whose query (`?api-version=…`) stays."""
    base = URL(base_url)
    return base.with_path(f"{base.raw_path.rstrip('/')}/{name}", encoded=True, keep_query=True)


async def _capped(answer: aiohttp.ClientResponse, limit_bytes: int) -> bytes | None:
    """Read a body, or None (and hang up) once it is longer than allowed."""
    if (answer.content_length or limit_bytes) < limit_bytes and "Content-Encoding" not in answer.headers:
        return await answer.read()  # as long as it says, in one piece
    parts, length = [], 0
    async for part in answer.content.iter_any():
        length += len(part)
        if length > limit_bytes:
            answer.close()
            return None
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _fault_of(error: Exception, timeout_s: float) -> Fault:
    """Name what went wrong below HTTP; keeps nothing of the exception, whose repr may show headers."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Fault(reason="unreachable", message="its certificate is not valid", effect="stop")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Fault(reason="unreachable", message=_why_unreachable(error), effect="unreachable")
    if isinstance(error, TimeoutError):
        return Fault(reason="timeout", message=f"no answer within {timeout_s:g} s (timeout_s)")
    if isinstance(error, aiohttp.InvalidURL):
        return Fault(reason="unreachable", message="not a URL that can be asked", effect="stop")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError | ValueError):
        return Fault(reason="invalid_answer", message="what came is not HTTP")
    return Fault(reason="reset", message="the connection broke before the answer was whole")


def _why_unreachable(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host's name is not known"
    if isinstance(error, aiohttp.ClientSSLError):
        return "no secure connection"
    return "no connection within 10 s" if isinstance(error, TimeoutError) else "no connection"


def _given_up(fault: Fault, course: _Course) -> Reply:
    error = SampleError(fault.reason, f"{fault.message}; tried {course.faults.total()} times", transient=True)
    return Reply(error=error)


def _answer(index: int, reply: Reply, course: _Course) -> Answer:
    return Answer(
        index=index,
        texts=() if reply.error else (reply.text,),
        error=reply.error,
        usage=Usage(
            requests=course.sent,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            retried=dict(course.faults),
        ),
        model=reply.model,
        finish_reason=reply.finish_reason,
        seconds=time.monotonic() - course.started,
    )
