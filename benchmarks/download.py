"""How fast the source of URLs fetches and packs, and what it holds in memory.

A server in a process of its own answers on many loopback addresses, each answer after a delay, as hosts far away do;
one worker ingests a table of its URLs through the real stage: downloads, journal, archive, index, record. The network
is no limit here, so what is measured is what a worker can do at best.

    python benchmarks/download.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.runner import run_stage


class Hosts(asyncio.Protocol):
    """Answers every request on a kept connection with the same picture."""

    answer = b""
    delay_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\r\n\r\n")):
            asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, self.answer)  # type: ignore[attr-defined]


def serve(picture: bytes, delay_s: float, port: Any) -> None:
    Hosts.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
    Hosts.delay_s = delay_s

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Hosts, "0.0.0.0", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def noise_picture(kilobytes: int) -> bytes:
    """Return a JPEG of about so many kilobytes (at quality 90 noise takes one byte a pixel)."""
    side = int((kilobytes * 1000) ** 0.5)
    stream = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", quality=55)
    return stream.getvalue()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    picture = noise_picture(options.kilobytes)
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    server = context.Process(target=serve, args=(picture, options.delay_s, told), daemon=True)
    server.start()
    try:
        port = told.get(timeout=60)
        hosts = [f"127.0.{number // 250}.{number % 250 + 2}" for number in range(options.hosts)]
        urls = [f"http://{hosts[n % len(hosts)]}:{port}/{n}.jpg" for n in range(options.pictures)]
        (folder / "raw").mkdir()
        pl.DataFrame({"url": urls, "caption": [f"picture {n}" for n in range(len(urls))]}).write_parquet(
            folder / "raw" / "t.parquet"
        )
        settings = {"kind": "urls", "url": str(folder / "raw"), "allow_private": True, "host_interval_s": 0.0}
        settings |= {"concurrency": options.concurrency, "per_host": 8}
        wall, cpu = time.perf_counter(), time.process_time()
        work = ingest_work(open_store(str(folder / "root")), "web", settings, unit_bytes=2**40)
        (((snapshot,)),) = run_stage("ingest", [work], RunOptions(quiet=True))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        server.terminate()
        server.join()
    assert snapshot.counts.kept == options.pictures, snapshot.counts
    return {
        "pictures": options.pictures,
        "picture_bytes": len(picture),
        "hosts": options.hosts,
        "delay_s": options.delay_s,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "pictures_per_s": round(options.pictures / wall, 1),
        "mb_per_s": round(options.pictures * len(picture) / 1e6 / wall, 1),
        "pictures_per_cpu_s": round(options.pictures / cpu, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--kilobytes", type=int, default=150, help="of a picture, about")
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--delay-s", type=float, default=0.1, help="of every answer")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-download-"))
    try:
        result = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result) if options.json else "\n".join(f"{name:20} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
