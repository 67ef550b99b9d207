"""What the storage module costs over the bare clients of an object store, and which client is the cheapest.

The same work in the same run, round after round by turns, through s3fs, obstore's fsspec interface, obstore's own
functions, and the storage module: small PUTs and GETs as of commit records, listing, 8 MiB ranged reads, a 64 MiB file
up and down. Once against moto_server (its Python is the limit: all look alike) and once against a server of this file,
which only keeps bytes and so leaves the client's own cost to be seen. The median of the rounds counts.

    python benchmarks/storage.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MIB = 2**20
RECORD = b"x" * 2048
LARGE_MIB = 64
RANGE = 8 * MIB
KEY, SECRET = "testing", "testing"
Work = dict[str, Callable[[], None]]


class Scale:
    """How much work a round is."""

    def __init__(self, requests: int, listed: int, listings: int, rounds: int, repeats: int = 1) -> None:
        self.requests, self.listed, self.listings, self.rounds = requests, listed, listings, rounds
        self.repeats = repeats  # of the small work through the two that are compared closely, a round

    def rate(self, name: str, seconds: float) -> tuple[str, float]:
        """Return a work's rate and its unit."""
        if name.endswith("_mib"):
            return "MB/s", LARGE_MIB * MIB / 1e6 / seconds
        return (
            ("names/s", self.listed * self.listings / seconds)
            if name == "list"
            else ("requests/s", self.requests / seconds)
        )


class LightServer(asyncio.Protocol):
    """As much of S3 as the benchmark asks for, in memory, without checking signatures; `delay_s` before each answer."""

    objects: dict[str, bytes | bytearray] = {}  # noqa: RUF012 - one store for all connections
    parts: dict[str, dict[int, bytes]] = {}  # noqa: RUF012
    delay_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            length = int(fields.get("content-length", 0))
            if len(self._buffer) < end + 4 + length:
                if "expect" in fields and len(self._buffer) == end + 4:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(memoryview(self._buffer)[end + 4 : end + 4 + length])
            self._buffer = self._buffer[end + 4 + length :]
            method, target, _ = lines[0].split(" ", 2)
            parts = urlsplit(target)
            query = parse_qs(parts.query, keep_blank_values=True)
            answer = self._answer(method, unquote(parts.path).lstrip("/"), query, fields, body)
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, self._send, method, *answer)
            else:
                self._send(method, *answer)

    def _send(self, method: str, status: str, headers: str, body: bytes | memoryview) -> None:
        size = f"Content-Length: {len(body)}\r\n" if "Content-Length" not in headers else ""
        date = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        self._transport.write(f'HTTP/1.1 {status}\r\nETag: "1"\r\n{date}{size}{headers}\r\n'.encode())
        if method != "HEAD" and len(body):
            self._transport.write(body)

    def _answer(
        self, method: str, path: str, query: dict[str, list[str]], fields: dict[str, str], body: bytes
    ) -> tuple[str, str, bytes | memoryview]:
        if "uploads" in query:
            self.parts[path] = {}
            return (
                "200 OK",
                "",
                b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
            )
        if "uploadId" in query and method == "PUT":
            self.parts[path][int(query["partNumber"][0])] = body
            return "200 OK", "", b""
        if "uploadId" in query:
            self.objects[path] = b"".join(part for _, part in sorted(self.parts.pop(path).items()))
            return "200 OK", "", b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>"
        if method == "PUT":
            self.objects[path] = body
            return "200 OK", "", b""
        if "list-type" in query:
            return "200 OK", "", self._listing(path, query)
        if path not in self.objects:
            return "404 Not Found", "", b"<Error><Code>NoSuchKey</Code></Error>"
        return self._object(method, memoryview(self.objects[path]), fields.get("range", ""))

    def _object(self, method: str, found: memoryview, wanted: str) -> tuple[str, str, bytes | memoryview]:
        if method == "HEAD":
            return "200 OK", f"Content-Length: {len(found)}\r\nAccept-Ranges: bytes\r\n", b""
        if not wanted:
            return "200 OK", "", found
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        piece = found[first : last + 1]
        return "206 Partial Content", f"Content-Range: bytes {first}-{first + len(piece) - 1}/{len(found)}\r\n", piece

    def _listing(self, path: str, query: dict[str, list[str]]) -> bytes:
        bucket = path.rstrip("/")
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "start-after"))
        after = query.get("continuation-token", [after])[0]
        names = sorted(name[len(bucket) + 1 :] for name in self.objects if name.startswith(f"{bucket}/{prefix}"))
        page = [name for name in names if name > after][: int(query.get("max-keys", ["1000"])[0])]
        more = bool(page) and page[-1] != names[-1]
        rows = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
            f"<Size>{len(self.objects[f'{bucket}/{name}'])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name in page
        )
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        told = f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>{token}"
        return (
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix>{told}{rows}</ListBucketResult>".encode()
        )


async def _serve(port: int, delay_s: float) -> None:
    LightServer.delay_s = delay_s
    server = await asyncio.get_running_loop().create_server(LightServer, "127.0.0.1", port)
    await server.serve_forever()


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Run a server in a process of its own until the block ends; gives its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *(argument.replace("PORT", str(port)) for argument in arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def s3fs_work(endpoint: str, bucket: str, scale: Scale, source: Path, target: Path) -> Work:
    """The work through s3fs."""
    import s3fs

    fs = s3fs.S3FileSystem(
        endpoint_url=endpoint, key=KEY, secret=SECRET, use_listings_cache=False, skip_instance_cache=True
    )
    return _fsspec_work(fs, bucket, scale, source, target)


def obstore_fsspec_work(endpoint: str, bucket: str, scale: Scale, source: Path, target: Path) -> Work:
    """The work through obstore's fsspec interface."""
    from obstore.fsspec import FsspecStore

    options: Any = {"client_options": {"allow_http": True}, "skip_instance_cache": True}
    fs = FsspecStore(
        "s3", endpoint=endpoint, access_key_id=KEY, secret_access_key=SECRET, region="us-east-1", **options
    )
    return _fsspec_work(fs, bucket, scale, source, target)


def _fsspec_work(fs: Any, bucket: str, scale: Scale, source: Path, target: Path) -> Work:
    def put() -> None:
        for number in range(scale.requests):
            fs.pipe_file(f"{bucket}/records/{number:06d}", RECORD)

    def get() -> None:
        for number in range(scale.requests):
            assert len(fs.cat_file(f"{bucket}/records/{number:06d}")) == len(RECORD)

    def listing() -> None:
        for _ in range(scale.listings):
            assert len(fs.find(f"{bucket}/many", detail=True)) == scale.listed

    def ranges() -> None:
        for start in range(0, LARGE_MIB * MIB, RANGE):
            assert len(fs.cat_file(f"{bucket}/large", start=start, end=start + RANGE)) == RANGE

    upload: dict[str, Any] = {"chunksize": RANGE} if type(fs).__name__ == "S3FileSystem" else {}
    return {
        "put_2_kib": put,
        "get_2_kib": get,
        "list": listing,
        "put_64_mib": lambda: fs.put_file(str(source), f"{bucket}/large", **upload),
        "read_8_mib": ranges,
        "get_64_mib": lambda: fs.get_file(f"{bucket}/large", str(target)),
    }


def obstore_work(endpoint: str, bucket: str, scale: Scale, source: Path, target: Path) -> Work:
    """The work through obstore's own functions, as its documentation has it."""
    import obstore
    from obstore.store import S3Store

    client: Any = {"allow_http": True, "timeout": timedelta(seconds=60)}
    store = S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options=client,
    )

    def put() -> None:
        for number in range(scale.requests):
            obstore.put(store, f"records/{number:06d}", RECORD)

    def get() -> None:
        for number in range(scale.requests):
            assert len(bytes(obstore.get(store, f"records/{number:06d}").bytes())) == len(RECORD)

    def listing() -> None:
        for _ in range(scale.listings):
            found = [meta["path"] for page in obstore.list(store, "many", chunk_size=1000) for meta in page]
            assert len(found) == scale.listed

    def ranges() -> None:
        for start in range(0, LARGE_MIB * MIB, RANGE):
            assert len(bytes(obstore.get_range(store, "large", start=start, length=RANGE))) == RANGE

    def download() -> None:
        with target.open("wb") as file:
            for piece in obstore.get(store, "large").stream(min_chunk_size=RANGE):
                file.write(piece)

    return {
        "put_2_kib": put,
        "get_2_kib": get,
        "list": listing,
        "put_64_mib": lambda: obstore.put(store, "large", source, chunk_size=RANGE, max_concurrency=4) and None,
        "read_8_mib": ranges,
        "get_64_mib": download,
    }


def module_work(endpoint: str, bucket: str, scale: Scale, source: Path, target: Path) -> Work:
    """The work through the storage module."""
    from tokenmill.manifests.storage import open_store

    options = {"endpoint": endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
    store = open_store(f"s3://{bucket}", options)

    def put() -> None:
        for number in range(scale.requests):
            store.put(f"records/{number:06d}", RECORD)

    def get() -> None:
        for number in range(scale.requests):
            assert len(store.read_bytes(f"records/{number:06d}")) == len(RECORD)

    def listing() -> None:
        for _ in range(scale.listings):
            assert sum(1 for _ in store.names("many")) == scale.listed

    def ranges() -> None:
        for start in range(0, LARGE_MIB * MIB, RANGE):
            assert len(store.read_range("large", start, RANGE)) == RANGE

    def upload() -> None:
        staged = source.with_name("staged")
        staged.unlink(missing_ok=True)
        os.link(source, staged)
        store.put_file("large", staged)

    def download() -> None:
        with store.local_copy("large") as path:
            assert path.stat().st_size == LARGE_MIB * MIB

    return {
        "put_2_kib": put,
        "get_2_kib": get,
        "list": listing,
        "put_64_mib": upload,
        "read_8_mib": ranges,
        "get_64_mib": download,
    }


CLIENTS = {
    "s3fs": s3fs_work,
    "obstore_fsspec": obstore_fsspec_work,
    "obstore": obstore_work,
    "module": module_work,
}


def measure(endpoint: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """Do the work through every client by turns and return rates and ratios to the bare client."""
    import boto3

    bucket = "benchmark-bucket"
    bare = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    bare.create_bucket(Bucket=bucket)
    source = folder / "large"
    source.write_bytes(os.urandom(LARGE_MIB * MIB))
    clients = {name: make(endpoint, bucket, scale, source, folder / "copy") for name, make in CLIENTS.items()}
    preparing = clients["obstore"]
    import obstore
    from obstore.store import S3Store

    options: Any = {"allow_http": True}
    store = S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options=options,
    )
    for number in range(scale.listed):
        obstore.put(store, f"many/{number:06d}", b"1")
    preparing["put_64_mib"]()
    times: dict[str, dict[str, list[float]]] = {name: {work: [] for work in preparing} for name in clients}
    for turn in range(scale.rounds + 1):  # the first warms up and does not count
        for work in preparing:
            again = 1 if work.endswith("_mib") and "2_kib" not in work else scale.repeats
            for name in (*list(clients)[:2], *(("obstore", "module") * again)):
                started = time.perf_counter()
                clients[name][work]()
                if turn:
                    times[name][work].append(time.perf_counter() - started)
    rates = {
        name: {work: round(scale.rate(work, statistics.median(found))[1], 1) for work, found in works.items()}
        for name, works in times.items()
    }
    ratios = {
        work: round(statistics.median(a / b for a, b in zip(found, times["module"][work], strict=True)), 3)
        for work, found in times["obstore"].items()
    }
    return {"rates": rates, "module_over_obstore": ratios}


def measure_reading(endpoint: str, count: int) -> dict[str, float]:
    """Return the MB/s of reading places ahead on a slow store, by how many spans are under way."""
    import tokenmill.pipelines.reading as reading
    from tokenmill.manifests.storage import open_store

    options = {"endpoint": endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
    store = open_store("s3://benchmark-bucket", options)
    store.put("shard", os.urandom(LARGE_MIB * MIB))
    places = [reading.Place("shard", at, MIB // 2) for at in range(0, LARGE_MIB * MIB, MIB // 2)]
    found = {}
    for ahead in (1, 2, 4, 8):
        started = time.perf_counter()
        for _ in range(count):
            for data in reading.read_places(store, places, ahead=ahead):
                assert len(data) == MIB // 2
        found[str(ahead)] = round(LARGE_MIB * count * MIB / 1e6 / (time.perf_counter() - started), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="rounds against the light server; moto gets two")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(options.serve, options.delay))
        return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(__file__, "--serve", "PORT") as endpoint:
            light = measure(
                endpoint, Scale(requests=150, listed=3000, listings=1, rounds=options.rounds, repeats=5), folder
            )
        with running("-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT") as endpoint:
            moto = measure(endpoint, Scale(requests=40, listed=200, listings=1, rounds=1), folder)
        with running(__file__, "--serve", "PORT", "--delay", "0.02") as endpoint:
            ahead = measure_reading(endpoint, 2)
    found = {
        "units": {work: Scale(1, 1, 1, 1).rate(work, 1.0)[0] for work in light["module_over_obstore"]},
        "light_server": light,
        "moto_server": moto,
        "read_ahead_mb_per_s_at_20_ms": ahead,
        "least_module_over_obstore": min(light["module_over_obstore"].values()),
    }
    print(json.dumps(found, indent=1) if options.json else _table(found))


def _table(found: dict[str, Any]) -> str:
    lines = []
    for server in ("light_server", "moto_server"):
        lines.append(f"{server:<14}" + "".join(f"{name:>16}" for name in (*CLIENTS, "module/obstore")))
        for work, unit in found["units"].items():
            rates = "".join(f"{found[server]['rates'][name][work]:>16,.1f}" for name in CLIENTS)
            lines.append(f"{work:<14}{rates}{found[server]['module_over_obstore'][work]:>16.2f}  {unit}")
    ahead = ", ".join(f"{number}: {rate:,.0f}" for number, rate in found["read_ahead_mb_per_s_at_20_ms"].items())
    return "\n".join([*lines, f"read ahead at 20 ms latency, MB/s by spans under way: {ahead}"])


if __name__ == "__main__":
    main()
