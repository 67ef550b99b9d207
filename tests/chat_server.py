"""A server of chat completions on loopback: answers at once or late, and errs as it is told. A process of its own.

    python -m tests.chat_server --port 0 --delay-ms 200 --faults timeout=0.02,http_503=0.02 --log FILE

    with ChatServer(delay_ms=20, faults={"reset": 0.05}) as server:
        ...                                   # server.url, server.received(), server.kill(), server.restart()

Speaks `POST /v1/chat/completions` and `GET /v1/models`. Which request meets which fault (see chat_faults.py) is drawn
by a seeded generator, after those of `script`. Every request is a line in the log before anything else happens to it,
so even a killed server tells who asked. HTTP is read by hand: 0.1 ms a request, so that the client may be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.chat_faults import Reply, completion, error, faulty_reply, http_reply, json_reply, known, reset
from tests.served import Served

_BATCH = 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nauthorization: *([^\r]*)", re.IGNORECASE)


@dataclass(kw_only=True)
class Settings:
    """How the server behaves.

    Attributes:
        delay_ms: from a request's last byte to its answer's first.
        faults: kind → share of the requests.
        script: what the first requests meet instead, in order; `ok` is no fault.
        poison: word → what every request meets whose prompt holds it; goes before all else.
        seed: of the faults' draw.
        key: what `Authorization: Bearer …` must be, else 401; empty: anything.
        model: the only one there is, else 404; empty: any.
        retry_after: the header of 429 and 503: seconds, `date` (an HTTP date two seconds ahead) or nothing.
        busy_s: every request gets 429 in the first seconds, counted from the first request.
        answer_with: `module:function` from the bodies of requests that wait (16 at most) to their texts, called in one
            thread; else they are made up.
        upstream: another server's base URL that the requests are passed on to; hangs up on who asked when it hangs up.
        log: a file to which each request is a line of JSON.
    """

    port: int = 0
    delay_ms: float = 0.0
    faults: Mapping[str, float] = field(default_factory=dict)
    script: Sequence[str] = ()
    poison: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    key: str = ""
    model: str = ""
    retry_after: str = ""
    busy_s: float = 0.0
    answer_with: str = ""
    upstream: str = ""
    log: str = ""

    def arguments(self) -> list[str]:
        lists = {"faults": ",".join(f"{name}={share}" for name, share in self.faults.items())}
        lists["script"] = ",".join(self.script)
        lists["poison"] = ",".join(f"{word}={kind}" for word, kind in self.poison.items())
        return [f"--{name.replace('_', '-')}={lists.get(name, value)}" for name, value in vars(self).items()]


class ChatServer(Served):
    """The server as a subprocess, while the block runs; takes `Settings` as keywords."""

    module = "tests.chat_server"

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self.settings.log = self.settings.log or str(Path(self._folder.name) / "requests.jsonl")
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._folder.cleanup()

    def arguments(self) -> list[str]:
        return self.settings.arguments()

    def restart(self, **settings: Any) -> None:
        """Start it (again), on the same port; keywords change its settings."""
        vars(self.settings).update(settings)
        super().restart()
        self.settings.port = self.port

    def received(self) -> list[dict[str, Any]]:
        """List every request: `prompt`, `system`, `seed`, `pictures` (digests), `fault`, `time` (of time.time),
        `at_once` (how many were being answered then), `body` without messages."""
        lines = Path(self.settings.log).read_text().splitlines() if Path(self.settings.log).exists() else []
        return [json.loads(line) for line in lines]

    def asked(self) -> Counter[str]:
        """Count the requests of each prompt."""
        return Counter(one["prompt"] for one in self.received())

    def wait_for(self, num_requests: int, limit_s: float = 20.0) -> None:
        """Wait until so many requests have come."""
        deadline, log = time.monotonic() + limit_s, Path(self.settings.log)
        while not log.exists() or log.read_bytes().count(b"\n") < num_requests:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.received())} of {num_requests} requests came")
            time.sleep(0.01)


class _Server:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        for kind in (*settings.faults, *settings.script, *settings.poison.values()):
            known(kind)
        self._random = random.Random(settings.seed)
        self._script = list(settings.script)
        self._kinds, self._shares = [*settings.faults, "ok"], [*settings.faults.values(), 0.0]
        self._shares[-1] = max(0.0, 1 - sum(self._shares))
        self._log = os.open(settings.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if settings.log else -1
        self._started, self._at_once = 0.0, 0
        self._writer = BatchWriter(settings.answer_with) if settings.answer_with else None
        self._session: Any = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.settings.port, backlog=1024)
        print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
        await listening.serve_forever()

    async def reply(self, head: bytes, raw: bytes) -> Reply:
        """Say what a request gets, after its delay."""
        self._at_once += 1
        try:
            return await self._reply(head, raw)
        finally:
            self._at_once -= 1

    async def _reply(self, head: bytes, raw: bytes) -> Reply:
        if head.startswith(b"GET"):
            is_list = head.split(b" ", 2)[1].endswith(b"/models")
            listed = {"object": "list", "data": [{"id": self.settings.model or "any", "object": "model"}]}
            return json_reply(200, listed) if is_list else error(404, "no such page")
        body = json.loads(raw)
        given = _KEY.search(head)
        authorization = given[1].decode() if given else ""
        fault = self._fault(body)
        self._note(body, fault)
        if self.settings.delay_ms:
            await asyncio.sleep(self.settings.delay_ms / 1000)
        if self.settings.key and authorization != f"Bearer {self.settings.key}":
            return error(401, f"Incorrect API key provided: {authorization}", code="invalid_api_key")
        if self.settings.model and body.get("model") != self.settings.model:
            return error(404, f"The model `{body.get('model')}` does not exist.", code="model_not_found")
        if fault != "ok":
            return faulty_reply(fault, body, authorization=authorization, retry_after=self.settings.retry_after)
        if self.settings.upstream:
            return await self._passed_on(raw)
        return json_reply(200, completion(body, await self._writer.text(body) if self._writer else made_up(body)))

    async def _passed_on(self, raw: bytes) -> Reply:
        import aiohttp

        self._session = self._session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(f"{self.settings.upstream}/chat/completions", data=raw, headers=headers) as a:
                return http_reply(a.status, await a.read(), a.content_type)
        except (aiohttp.ClientError, OSError):
            return Reply(b"", "reset")

    def _fault(self, body: dict[str, Any]) -> str:
        if self.settings.poison:
            prompt = taken_apart(body)[1]
            for word, kind in self.settings.poison.items():
                if word in prompt:
                    return kind
        self._started = self._started or time.monotonic()
        if time.monotonic() - self._started < self.settings.busy_s:
            return "http_429"
        if self._script:
            return self._script.pop(0)
        return self._random.choices(self._kinds, self._shares)[0] if len(self._kinds) > 1 else "ok"

    def _note(self, body: dict[str, Any], fault: str) -> None:
        if self._log < 0:
            return
        system, prompt, pictures = taken_apart(body)
        line = {"prompt": prompt, "system": system, "seed": body.get("seed"), "fault": fault, "time": time.time()}
        line["at_once"] = self._at_once
        line["pictures"] = [hashlib.sha256(picture.encode()).hexdigest()[:16] for picture in pictures]
        line["body"] = {key: value for key, value in body.items() if key != "messages"}
        os.write(self._log, json.dumps(line).encode() + b"\n")


class BatchWriter:
    """Has the requests that wait answered together by a function in a thread of its own."""

    def __init__(self, name: str) -> None:
        module, _, function = name.partition(":")
        self._write: Callable[[list[dict[str, Any]]], list[str]] = getattr(importlib.import_module(module), function)
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[str]]] = []
        self._task: asyncio.Task[None] | None = None

    async def text(self, body: dict[str, Any]) -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        self._waiting.append((body, answer))
        if self._task is None:
            self._task = loop.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            bodies = [body for body, _ in batch]
            texts = await asyncio.get_running_loop().run_in_executor(self._thread, self._write, bodies)
            for (_, answer), text in zip(batch, texts, strict=True):
                if not answer.done():  # who asked may have hung up
                    answer.set_result(text)
        self._task = None


class _Connection(asyncio.Protocol):
    def __init__(self, server: _Server) -> None:
        self._server, self._data, self._task = server, bytearray(), None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._data[:end])
        length = _LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._data) >= whole:
            raw = bytes(memoryview(self._data)[end + 4 : whole])
            self._data = self._data[whole:]
            self._task = asyncio.get_running_loop().create_task(self._answer(head, raw))

    async def _answer(self, head: bytes, raw: bytes) -> None:
        reply = await self._server.reply(head, raw)
        if reply.data:
            self._transport.write(reply.data)
        if reply.then == "reset":
            await asyncio.sleep(0.01)  # what was written should arrive
            reset(self._transport)
        elif reply.then == "hang":
            await asyncio.Event().wait()


def taken_apart(body: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """Return a request's system prompt, its prompt, and its pictures as data URLs."""
    texts: dict[str, list[str]] = {"system": [], "user": []}
    pictures = []
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts[message["role"]].append(part["text"])
            else:
                pictures.append(part["image_url"]["url"])
    return "\n".join(texts["system"]), "\n".join(texts["user"]), pictures


_THINGS = (
    "a red house",
    "an old bridge",
    "two children",
    "a white dog",
    "a market stall",
    "a bicycle",
    "a field of wheat",
)
_PLACES = (
    "beside the river",
    "under a grey sky",
    "at dusk",
    "in front of a wall",
    "on a narrow street",
    "near the woods",
)


def made_up(body: Mapping[str, Any]) -> str:
    """Return a caption that depends on prompt, seed and pictures, and on nothing else."""
    digest = hashlib.sha256(repr((*taken_apart(body), body.get("seed"))).encode()).digest()
    thing, other = _THINGS[digest[0] % len(_THINGS)], _THINGS[digest[1] % len(_THINGS)]
    return f"A photograph of {thing} and {other} {_PLACES[digest[2] % len(_PLACES)]}, number {digest[3:7].hex()}."


def _settings(arguments: Sequence[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m tests.chat_server", description=__doc__)
    for name, value in vars(Settings()).items():
        kind = type(value) if isinstance(value, int | float) else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value not in (None, "")}
    faults, poison = (
        (pair.split("=") for pair in given.pop(name, "").split(",") if pair) for name in ("faults", "poison")
    )
    script = tuple(given.pop("script", "").replace(",", " ").split())
    shares = {name: float(share) for name, share in faults}
    return Settings(faults=shares, poison=dict(poison), script=script, **given)


def serve(arguments: Sequence[str] | None = None) -> None:
    """Serve until killed; `arguments` as on the command line."""
    asyncio.run(_Server(_settings(arguments)).run())


if __name__ == "__main__":
    serve()
