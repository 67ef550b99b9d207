"""A stage as a Ray job: the project and the recipe travel, the log comes back, the exit code is carried."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import tiny
from tests.harness import trusted

from tokenmill.cli import main
from tokenmill.manifests.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
_START_S = 120


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """A Ray head of its own with a job server, gone at the end."""
    port, dashboard = _free_ports(2)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: it holds Unix sockets
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"),
        *(f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"),
        *("--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=100000000"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # a job calls for `python`
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait_until_answering(f"http://127.0.0.1:{dashboard}/api/version", process)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # asked kindly, it drains for half a minute
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_until_answering(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the job server did not start")


def test_submitted_stage_leaves_the_same_files_and_carries_its_exit_code(finished, job_server, tmp_path, capfd):
    changes = {"execution.executor": "ray", "execution.workers": 1}
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, str(tmp_path / "root"), changes)
    assert main(["submit", "ingest", str(recipe), "--address", job_server]) == 0
    assert "kept 28" in capfd.readouterr().out
    whole = trusted(open_store(str(finished.root)))
    expected = {path: digest for path, digest in whole.items() if path.startswith("ingest/")}
    assert trusted(open_store(str(tmp_path / "root"))) == expected

    shutil.rmtree(tmp_path / "root")
    assert main(["submit", "score", str(recipe), "--address", job_server]) == 1
    assert "ingest" in capfd.readouterr().out


def test_submit_where_nobody_answers_says_so_and_ends_with_one(tmp_path, capsys):
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))
    (port,) = _free_ports(1)
    assert main(["submit", "ingest", str(recipe), "--address", f"http://127.0.0.1:{port}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(port) in line
