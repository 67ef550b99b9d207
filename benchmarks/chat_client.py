"""Requests a second and CPU a request: the engine `openai` against a bare aiohttp loop, and openai's own package.

    python -m benchmarks.chat_client --requests 20000 --concurrency 256 --delay-ms 200 [--picture-kb 100] [--json]

The server (tests/chat_server.py) is a process of its own on the same cores. `--openai` measures that package too, if it
is installed. Memory is that of this process after a tenth of the requests and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from tests.chat_server import ChatServer

from tokenmill.captions.captioner import EncodedPicture, Request, build_captioner

Way = Callable[[str, int, int, bytes], dict[str, float]]
_PROMPT = "Describe the picture of sample {} in detail, in one paragraph."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--delay-ms", type=float, default=200.0)
    parser.add_argument("--picture-kb", type=int, default=0)
    parser.add_argument("--ahead", type=int, help="the engine's setting")
    parser.add_argument("--store-ms", type=float, default=0.0, help="what the engine's caller needs for each batch")
    parser.add_argument("--rounds", type=int, default=1, help="the ratio is their median")
    parser.add_argument("--openai", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    picture = random.Random(0).randbytes(args.picture_kb * 1000)
    ways: dict[str, Way] = {"bare": bare}
    ways["engine"] = functools.partial(engine, ahead=args.ahead, store_s=args.store_ms / 1000)
    if args.openai:
        ways["openai"] = openai_package
    rounds: list[dict[str, Any]] = []
    with ChatServer(delay_ms=args.delay_ms, log="/dev/null") as server:
        for way in ways.values():
            way(server.url, 10, 1, picture)  # imports
        while len(rounds) < args.rounds:
            rounds += [{name: measured(way, server.url, args, picture) for name, way in ways.items()}]
    ratios = [one["engine"]["requests_per_s"] / one["bare"]["requests_per_s"] for one in rounds]
    found = {"engine_of_bare": round(statistics.median(ratios), 3), "rounds": rounds}
    print(json.dumps(found, indent=None if args.json else 2))


def measured(way: Way, url: str, args: argparse.Namespace, picture: bytes) -> dict[str, Any]:
    """Ask in one way; return requests/s, CPU of this process, and what the way tells."""
    started, cpu = time.monotonic(), time.process_time()
    told = way(url, args.requests, args.concurrency, picture)
    seconds, cpu_s = time.monotonic() - started, time.process_time() - cpu
    rates = {"requests_per_s": args.requests / seconds, "cpu_ms_per_request": 1000 * cpu_s / args.requests}
    return {"seconds": round(seconds, 2), **{name: round(rate, 3) for name, rate in rates.items()}, **told}


def bare(url: str, num_requests: int, concurrency: int, picture: bytes) -> dict[str, float]:
    """Ask from one coroutine a place, with nothing around it."""
    numbers = iter(range(num_requests))

    async def place(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            async with session.post(
                f"{url}/chat/completions", data=json.dumps(body(number, picture)).encode()
            ) as answer:
                assert json.loads(await answer.read())["choices"][0]["message"]["content"]

    async def places() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(place(session) for _ in range(concurrency)))

    asyncio.run(places())
    return {}


def engine(
    url: str, num_requests: int, concurrency: int, picture: bytes, *, ahead: int | None, store_s: float
) -> dict[str, float]:
    """Ask by the engine, for a caller that stores each batch."""
    settings = {"model": "small", "base_urls": url, "concurrency": concurrency, "ahead": ahead}
    captioner = build_captioner("openai", settings)
    done, early, batches = 0, 0.0, 0
    for batch in captioner.answers(requests(num_requests, picture)):
        assert all(answer.texts for answer in batch)
        time.sleep(store_s)
        done, batches = done + len(batch), batches + 1
        if done >= num_requests // 10:
            early = early or resident_mb()
    captioner.close()
    return {"early_mb": early, "end_mb": resident_mb(), "answers_per_batch": round(done / batches, 1)}


def openai_package(url: str, num_requests: int, concurrency: int, picture: bytes) -> dict[str, float]:
    """Ask by openai's package."""
    from openai import AsyncOpenAI  # type: ignore[import-not-found]

    numbers = iter(range(num_requests))

    async def place(client: Any) -> None:
        for number in numbers:
            answer = await client.chat.completions.create(**body(number, picture))
            assert answer.choices[0].message.content

    async def places() -> None:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            await asyncio.gather(*(place(client) for _ in range(concurrency)))

    asyncio.run(places())
    return {}


def body(number: int, picture: bytes) -> dict[str, Any]:
    content: Any = _PROMPT.format(number)
    if picture:
        url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
    return {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": 512, "seed": number}


def requests(number: int, picture: bytes) -> Iterator[Request]:
    pictures = (EncodedPicture(data=picture, media_type="image/jpeg"),) if picture else ()
    for index in range(number):
        yield Request(index=index, sample={}, prompt=_PROMPT.format(index), seed=index, pictures=pictures)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


if __name__ == "__main__":
    main()
