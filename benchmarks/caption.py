"""How fast the stage caption asks, against a bare loop that only asks; and what it holds in memory.

The stage runs as it does in a recipe: pictures read from an archive, prompts rendered, the engine `openai`, answers
judged, journal, table and record. The bare loop posts the same bodies with aiohttp and looks for the text in each
answer. Both ask the same server, a process that answers after `--delay-ms`, by turns, each in a process of its own.

    python -m benchmarks.caption --json

A row for each of `--concurrency`, without pictures; another with pictures of 512 pixels a side, which are passed on as
they are. `slope_mb_per_1000` is the memory the stage gains over the second half of its requests.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.chat_server import ChatServer

from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.pipelines.chain import STAGES, Chain, ChainOptions
from tokenmill.recipe import check_recipe

PROMPT = "Say in one sentence what a picture shows that is called: {caption}"
_SHARD = 10_000
_SAMPLE_S = 0.1
_WARM_UP = 10  # samples
_BIG_BODY = 2**16  # bytes; aiohttp warns of larger ones that are not files
Way = Callable[[dict[str, Any]], dict[str, float]]


def recipe(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose column is new for each seed, so that nothing is answered yet."""
    column = {"engine": "openai", "model": "any", "base_urls": [job["url"]], "prompt": PROMPT, "seed": job["seed"]}
    column |= {"concurrency": job["concurrency"], "pictures": job["side_px"] > 1, "checks": {"refusals": True}}
    return {
        "root": str(folder / "root"),
        "execution": {"executor": "inline", "workers": 1, "unit_rows": 20_000},
        "sources": {"pictures": {"kind": "webdataset", "url": str(folder / "raw")}},
        "filter": {"image": {"scorers": {}, "rules": {}}},
        "caption": {"image": {"columns": {"short": column}}},
    }


def write_source(folder: Path, num_samples: int, side_px: int) -> None:
    """Write samples of one picture under many names (noise at quality 75: half a byte a pixel and more)."""
    stream = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (max(1, side_px // 4),) * 2 + (3,), dtype=np.uint8)
    Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=75)
    (folder / "raw").mkdir(parents=True)
    (folder / "picture.jpg").write_bytes(stream.getvalue())
    for first in range(0, num_samples, _SHARD):
        with ArchiveWriter(folder / "raw" / f"{first // _SHARD:05d}.tar") as writer:
            for number in range(first, min(first + _SHARD, num_samples)):
                writer.add(f"{number:09d}", {"jpg": stream.getvalue(), "txt": caption(number).encode()})


def caption(number: int) -> str:
    return f"sample {number} of a large set of pictures, number {number % 7}"


def stage(job: dict[str, Any], *, is_warm: bool = False) -> dict[str, float]:
    """Caption everything with a new column."""
    if not is_warm:
        stage({**job, "folder": f"{job['folder']}/warm", "requests": _WARM_UP}, is_warm=True)  # imports cost 0.5 s
    chain = Chain(recipe=check_recipe(recipe(Path(job["folder"]), job), "benchmark"), options=ChainOptions(quiet=True))
    assert chain.selected
    with Memory() as memory:
        started, cpu = time.perf_counter(), time.process_time()
        (snapshot,) = chain.caption.values()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert snapshot.counts.kept == job["requests"], snapshot.counts
    return {"seconds": seconds, "cpu_s": cpu, **memory.told(job["requests"])}


def bare(job: dict[str, Any]) -> dict[str, float]:
    """Post the same bodies from one coroutine a place."""
    import aiohttp

    picture = (Path(job["folder"]) / "picture.jpg").read_bytes() if job["side_px"] > 1 else b""
    todo = bodies(job["requests"], picture)
    headers = {"Content-Type": "application/json"}

    async def place(session: aiohttp.ClientSession) -> None:
        for body in todo:
            async with session.post(f"{job['url']}/chat/completions", data=body, headers=headers) as answer:
                assert json.loads(await answer.read())["choices"][0]["message"]["content"]

    async def places() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(place(session) for _ in range(job["concurrency"])))

    with Memory() as memory:
        started, cpu = time.perf_counter(), time.process_time()
        asyncio.run(places())
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": cpu, **memory.told(job["requests"])}


def bodies(number: int, picture: bytes) -> Iterator[bytes | BytesIO]:
    """Yield what the engine sends; the picture is encoded once, which the engine has to do every time."""
    opening = b'{"model":"any","max_tokens":512,"seed":%d,"messages":[{"role":"user","content":'
    shown = b'[{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,' + base64.b64encode(picture) + b'"}},'
    for index in range(number):
        words = json.dumps(PROMPT.format(caption=caption(index))).encode()
        content = shown + b'{"type":"text","text":' + words + b"}]" if picture else words
        body = opening % (index + 2**30) + content + b"}]}"
        yield BytesIO(body) if len(body) > _BIG_BODY else body


class Memory:
    """Notes this process's memory ten times a second while the block runs."""

    def __enter__(self) -> Memory:
        self._found: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._found.append(pages * resource.getpagesize() / 1e6)

    def told(self, num_requests: int) -> dict[str, float]:
        """Return the most, and the growth over the second half by least squares (of the run's own duration)."""
        half = self._found[len(self._found) // 2 :]
        growth = float(np.polyfit(np.linspace(0, num_requests / 2, len(half)), half, 1)[0]) if len(half) > 9 else 0.0
        return {"peak_mb": max(self._found, default=0.0), "slope_mb_per_1000": growth * 1000}


def measured(way: Way, job: dict[str, Any]) -> dict[str, float]:
    """Do it in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(way, (job,))


def compare(
    options: argparse.Namespace, folder: Path, side_px: int, num_requests: int, concurrency: int
) -> dict[str, Any]:
    """Run both by turns and return the medians."""
    found: dict[str, list[dict[str, float]]] = {"stage": [], "bare": []}
    with ChatServer(delay_ms=options.delay_ms) as server:
        job = {"folder": str(folder), "url": server.url, "side_px": side_px}
        job |= {"requests": num_requests, "concurrency": concurrency}
        for number in range(options.rounds):
            seed = time.time_ns() % 2**31
            found["stage"].append(measured(stage, {**job, "seed": seed}))
            found["bare"].append(measured(bare, {**job, "seed": number}))
    rates = {name: [round(num_requests / one["seconds"], 1) for one in some] for name, some in found.items()}
    middle = {name: statistics.median(some) for name, some in rates.items()}
    cpu = {name: statistics.median(one["cpu_s"] for one in some) / num_requests * 1e3 for name, some in found.items()}
    return {
        "side_px": side_px if side_px > 1 else None,
        "concurrency": concurrency,
        "requests": num_requests,
        "requests_per_s": middle,
        "each": rates,
        "ratio": round(middle["stage"] / middle["bare"], 3),
        "cpu_ms_per_request": {name: round(value, 3) for name, value in cpu.items()},
        "peak_mb": round(max(one["peak_mb"] for one in found["stage"])),
        "slope_mb_per_1000": round(statistics.median(one["slope_mb_per_1000"] for one in found["stage"]), 3),
    }


def prepared(folder: Path, num_samples: int, side_px: int) -> Path:
    """Write a source and bring it up to its selection."""
    if num_samples > _WARM_UP:
        prepared(folder / "warm", _WARM_UP, side_px)
    write_source(folder, num_samples, side_px)
    job = {"url": "http://127.0.0.1:1/v1", "seed": 0, "concurrency": 1, "side_px": side_px}
    before = frozenset(STAGES[: STAGES.index("caption")])
    chain = Chain(
        recipe=check_recipe(recipe(folder, job), "benchmark"), options=ChainOptions(work=before, quiet=True)
    )  # fmt: skip
    assert chain.select
    return folder


def rows(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for concurrency in options.concurrency:
        number = min(options.requests, concurrency * options.waves)
        place = prepared(folder / f"words-{concurrency}", number, 1)
        yield compare(options, place, 1, number, concurrency)
    if options.pictures:
        place = prepared(folder / "pictures", options.pictures, options.side_px)
        yield compare(options, place, options.side_px, options.pictures, max(options.concurrency))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="at most")
    parser.add_argument("--waves", type=int, default=100, help="requests a place, at most")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--delay-ms", type=float, default=200.0)
    parser.add_argument("--pictures", type=int, default=4000, help="requests with a picture; 0: none")
    parser.add_argument("--side-px", type=int, default=512, help="of those pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-caption-"))
    try:
        found = list(rows(options, folder))
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps({"delay_ms": options.delay_ms, "rounds": options.rounds, "rows": found}))
        return
    for row in found:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
