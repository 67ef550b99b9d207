"""Fixtures that several areas share: an S3 server on loopback, and one thread for every maths library."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.gcs_gateway import GcsServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("tokenmill", deadline=None, derandomize=True, database=None)
settings.load_profile("tokenmill")
_START_S = 60


@dataclass(frozen=True)
class S3Server:
    """A real HTTP server that speaks S3; `new_root` makes a bucket and returns a URL in it."""

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        """What `open_store` and a recipe's `storage` take."""
        return {"endpoint_url": self.endpoint, "key": "testing", "secret": "testing"}

    def new_root(self) -> str:
        import s3fs

        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        s3fs.S3FileSystem(**self.options).mkdir(bucket)
        return f"s3://{bucket}/root"


@dataclass(frozen=True)
class Finished:
    """A tiny recipe that ran up to `plan`, once for the whole session: copy `root` before changing anything."""

    data: Path
    root: Path

    def copy(self, target: Path) -> Path:
        return Path(shutil.copytree(self.root, target))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    from tests import tiny

    from tokenmill.pipelines.chain import Chain, ChainOptions
    from tokenmill.recipe import check_recipe

    folder = tmp_path_factory.mktemp("finished")
    done = Finished(data=folder / "data", root=folder / "root")
    tiny.write_data(done.data)
    recipe = check_recipe(tiny.recipe(done.data, str(done.root)), "tiny")
    chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
    assert chain.plan.num_packs > 0
    return done


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_listening(port, process)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """A Google Cloud Storage emulator over HTTP."""
    with GcsServer() as server:
        yield server


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the S3 server did not start")


@pytest.fixture
def small_rollups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rollups of a handful of records, so that small stages have several."""
    from tokenmill.manifests import rollup_writer

    monkeypatch.setattr(rollup_writer, "WRITE_EVERY", 8)
    monkeypatch.setattr(rollup_writer, "FEWEST", 2)
    monkeypatch.setattr(rollup_writer, "FULL_RECORDS", 32)
