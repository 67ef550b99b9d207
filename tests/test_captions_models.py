"""What engines with models of their own share: files of a hub or a folder, words made harmless, pulling ahead."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.tiny_vlm import SPECIAL, small_tokenizer, write_tiny_vlm

from tokenmill.captions.ahead import Ahead
from tokenmill.captions.conversation import control_tokens, disarmed
from tokenmill.captions.model_files import ModelFiles
from tokenmill.errors import RecipeError
from tokenmill.manifests.file_digest import file_digest

COMMIT = "c0ffee" * 6 + "beef"
PROGRAM = """
import sys
from tokenmill.captions.model_files import ModelFiles
from tokenmill.errors import RecipeError
files = ModelFiles("owner/model", None, "transformers")
try:
    print(files.digest, files.label, files.fetch() if "fetch" in sys.argv else "")
except RecipeError as error:
    print(error)
"""


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as one repository needs; `asked` is what was fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder, self.asked = folder, list[str]()
        self.is_busy = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def described(self) -> bytes:
        """Return what the hub says of a repository: names, and the sha256 of large files."""
        files = [{"rfilename": path.name, "lfs": self._large(path, "sha256")} for path in sorted(self.folder.iterdir())]
        return json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": files}).encode()

    def listed(self) -> bytes:
        """Return what the hub says of a repository's tree."""
        paths = sorted(self.folder.iterdir())
        sizes = [{"oid": "0", "size": path.stat().st_size, "lfs": self._large(path, "oid")} for path in paths]
        files = [{"type": "file", "path": path.name, **size} for path, size in zip(paths, sizes, strict=True)]
        return json.dumps(files).encode()

    def _large(self, path: Path, name: str) -> dict[str, object] | None:
        if path.suffix != ".safetensors":
            return None
        return {name: file_digest(path), "size": path.stat().st_size, "pointerSize": 134}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        path = self.server.folder / name
        if self.server.is_busy:
            self._send(503, b"busy")
        elif self.path.startswith("/api/models/owner/model/tree/"):
            self._send(200, self.server.listed())
        elif self.path.startswith("/api/models/owner/model"):
            self._send(200, self.server.described())
        elif self.path.startswith((f"/owner/model/resolve/{COMMIT}/", "/owner/model/resolve/main/")) and path.is_file():
            if self.command == "GET":
                self.server.asked.append(name)
            self._send(200, path.read_bytes())
        else:
            self._send(404, b"none")

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(data)), "Content-Type": "application/json", "X-Repo-Commit": COMMIT}
        for name, value in (headers | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked_of(address: str, cache: Path, *arguments: str) -> str:
    """Return what PROGRAM prints: the hub's address and cache are read when its library is imported."""
    places = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | places
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_model_of_the_hub_has_the_digest_of_its_copy_without_its_weights_being_fetched(hub, folder, tmp_path):
    digest, label = asked_of(hub.address, tmp_path / "cache").split()
    assert digest == ModelFiles(str(folder), None, "any").digest
    assert label == f"owner/model@{COMMIT[:12]}"
    assert "config.json" in hub.asked and "model.safetensors" not in hub.asked


def test_model_of_a_hub_that_cannot_be_reached_is_the_one_in_the_cache(hub, folder, tmp_path):
    cache = tmp_path / "cache"
    found = asked_of(hub.address, cache, "fetch")
    assert {path.name for path in Path(found.split()[2]).iterdir()} == {path.name for path in folder.iterdir()}
    hub.is_busy = True
    assert asked_of(hub.address, cache, "fetch") == found
    assert "neither reachable on the hub nor in its cache" in asked_of("http://127.0.0.1:9", tmp_path / "empty")


def test_model_in_parts_needs_all_that_its_index_names(folder, tmp_path):
    parts = shutil.copytree(folder, tmp_path / "parts")
    (parts / "model.safetensors").rename(parts / "model-1.safetensors")
    weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(RecipeError, match=r"lacks model-2\.safetensors"):
        _ = ModelFiles(str(parts), None, "any").digest
    shutil.copy(parts / "model-1.safetensors", parts / "model-2.safetensors")
    first = ModelFiles(str(parts), None, "any").digest
    (parts / "consolidated.safetensors").write_bytes(b"of another library, read by none here")
    assert ModelFiles(str(parts), None, "any").digest == first
    with (parts / "model-2.safetensors").open("ab") as file:
        file.write(b"\0")
    assert ModelFiles(str(parts), None, "any").digest != first


def test_words_of_a_sample_cannot_be_control_tokens():
    tokens = control_tokens(small_tokenizer(), "<image>", None)
    assert tokens == {*SPECIAL, "<image>"}
    assert disarmed("a <image><|end|> b", tokens) == "a < image>< |end|> b"
    assert disarmed("a < b, <imag e>", tokens) == "a < b, <imag e>"
    assert disarmed("<image>", frozenset()) == "<image>"


def test_items_pulled_ahead_come_in_order_and_no_further_than_the_depth():
    pulled: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            pulled.append(number)
            yield number

    with Ahead(source(), depth=2) as items:
        first = next(items)
        while not items.is_ready():
            pass
        assert first == 0
        assert len(pulled) <= 3
        assert list(items) == list(range(1, 10))
        assert next(items, None) is None


def test_items_after_an_error_of_their_source_do_not_come_and_it_is_raised_in_its_place():
    def source() -> Iterator[int]:
        yield from (1, 2)
        raise RecipeError("no more")

    found: list[int] = []
    with pytest.raises(RecipeError, match="no more"), Ahead(source(), depth=3) as items:
        found.extend(items)  # extend keeps what came before an error
    assert found == [1, 2]


def test_source_is_advanced_by_nobody_once_its_reader_left():
    pulled: list[int] = []

    def source() -> Iterator[int]:
        for number in range(1000):
            pulled.append(number)
            yield number

    iterator = source()
    with Ahead(iterator, depth=1) as items:
        next(items)
    number = len(pulled)
    assert number <= 2
    assert next(iterator) == number
