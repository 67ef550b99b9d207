"""The toy world's driver at its tiny size: killed in the middle, it goes on, and what was done is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from benchmarks.toyworld.table import BEGIN, END, write_table

from tokenmill.cli import main
from tokenmill.errors import RunError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LIMIT_S = 400.0
STAGES = ("ingest", "split", "score", "select", "caption", "choose", "tokenize", "plans", "checkpoints")


@contextmanager
def _started(out: Path, table: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the driver in a process group of its own, which is gone in the end whatever happens."""
    process = _start(out, table)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(out: Path, table: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.toyworld.run", "--quick", "--out", str(out), "--table", str(table)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def _wait_for(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def _files(root: Path) -> dict[str, int]:
    """Return all data, records and checkpoints with the time of their last change; logs are left out."""
    found = (path for path in root.rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in found}


def test_driver_killed_and_stopped_in_training_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    out, table = tmp_path / "toy", tmp_path / "toyworld.md"
    table.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    with _started(out, table) as process:
        _wait_for(process, out / "run/checkpoints/mixed-pictures/step-00000002/checkpoint.json")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    state = json.loads((out / "toyworld.json").read_text())
    assert [name for name, step in state.items() if step["done"]] == ["data", "words", "tokenizer"]
    before = {
        name: at
        for name, at in _files(out).items()
        if "/commits/" in name or name.startswith("data/") or "tokenizers" in name
    }
    assert before

    with _started(out, table) as process:
        _wait_for(process, out / "run/checkpoints/mixed-pictures/step-00000004/checkpoint.json")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 1, said
    assert not json.loads((out / "toyworld.json").read_text())["mixed"]["done"]

    with _started(out, table) as process:
        said = process.communicate(timeout=LIMIT_S)[0]

    assert process.returncode == 0, said
    assert "tokenizer: done before" in said
    after = _files(out)
    assert {name: after[name] for name in before} == before
    assert len((out / "run/checkpoints/mixed-pictures/metrics.jsonl").read_text().splitlines()) > 2
    for stage in STAGES:
        assert list((out / "run" / stage).iterdir()), stage
    assert main(["verify", str(out / "run"), "--deep"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results["models"]) == {"mixed", "shuffled", "untrained"}
    text = table.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "| single_object |" in text

    with _started(out, table) as process:
        said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0
    assert said.count("done before") == len(json.loads((out / "toyworld.json").read_text()))
    assert _files(out / "run") == {
        name.removeprefix("run/"): at for name, at in after.items() if name.startswith("run/")
    }


def test_table_without_its_place_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("no markers")
    with pytest.raises(RunError, match="no place for the table"):
        write_table(tmp_path / "results.json", document)
