"""Kill a run at a named point, run it again, and compare what is on disk with a run that nobody disturbed.

    with Commands() as commands:                                       # forks children that have all imported already
        assert commands.run("tokenize", recipe, fault="commit:before-record:2").was_killed
        commands.run("tokenize", recipe).check()
    assert trusted(store) == trusted(undisturbed)

A child is one command line of tokenmill with its own environment, ended by SIGKILL from inside (`tokenmill.faults`), so
nothing gets a chance to clean up. Importing torch takes seconds; forking a process that has done it takes none, which
is what makes some fifty kills affordable.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenmill.errors import TokenmillError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.stagedir import stage_dir_at
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify import verify

_ZYGOTE = """
import json, os, sys
import polars, pyarrow.parquet, tokenmill.cli, tokenmill.commands, tokenmill.pipelines.chain
if sys.argv[1] == "tokenizer":
    from tokenmill.tokenize.vision_emu3 import load_shipped
    load_shipped()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1); os.dup2(out, 2); os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(job["environment"])
        code = 99
        try:
            code = tokenmill.cli.main(job["arguments"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: the signal), and all it printed."""

    code: int
    text: str

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def check(self) -> None:
        assert self.code == 0, f"exit code {self.code}:\n{self.text}"


class Commands:
    """Runs command lines of tokenmill in children that fork from one warm process.

    `tokenizer`: it holds the vision tokenizer as well, and with it torch, which takes most of the time to start.
    """

    def __init__(self, *, tokenizer: bool = True) -> None:
        self._holds = "tokenizer" if tokenizer else "stages"

    def __enter__(self) -> Commands:
        self._log = Path(tempfile.mkstemp(prefix="tokenmill-harness-")[1])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ZYGOTE, self._holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.unlink()

    def run(self, *arguments: object, fault: str = "", started: Callable[[int], None] | None = None) -> Outcome:
        """Run one command to its end; `fault` is a `point:count` to die at, `started` gets to know its process."""
        job = {
            "arguments": [str(argument) for argument in arguments],
            "environment": {"TOKENMILL_FAULT": fault},
            "log": str(self._log),
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if started is not None:
            started(child)
        code = int(self._process.stdout.readline())
        return Outcome(code, self._log.read_text())


def run_alone(*arguments: object, environment: dict[str, str] | None = None) -> Outcome:
    """Run one command in a fresh process, which may use Ray."""
    with start_alone(*arguments, environment=environment) as process:
        text, _ = process.communicate(timeout=300)
    return Outcome(process.returncode, text)


@contextlib.contextmanager
def start_alone(*arguments: object, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start one command in a fresh process, for a test that kills it; it is gone at the end in any case."""
    command = [sys.executable, "-m", "tokenmill.cli", *(str(argument) for argument in arguments)]
    process = subprocess.Popen(
        command,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_record(store: Store, stage: str, process: subprocess.Popen[str]) -> None:
    """Return as soon as a stage has committed something while its process still runs."""
    while process.poll() is None:
        if any("/commits/" in entry.path for entry in store.files(stage)):
            return
        time.sleep(0.01)
    told = (process.communicate()[0] or "")[-3000:]
    raise AssertionError(f"the run ended (exit code {process.returncode}) before it could be disturbed:\n{told}")


def trusted(store: Store) -> dict[str, str]:
    """Return the digest of every file that a reader may trust: descriptions, records, what they name, snapshots.

    Logs and files that no record names are left out: a killed run may leave some behind, and nobody reads them.
    """
    listing = [entry.path for entry in store.files()]
    found = [path for path in listing if _is_description(path)]
    for path in listing:
        if path.endswith("/config.json"):
            folder = stage_dir_at(store, path.rpartition("/")[0])
            for unit, attempt in folder.record_names().items():
                found += [folder.at(entry.name) for entry in folder.read_commit(unit, attempt).files]
    return {path: sha256_hex(store.read_bytes(path)) for path in found}


def _is_description(path: str) -> bool:
    parts = path.split("/")
    if parts[0] == "plans" and len(parts) == 4 and parts[-1] in ("plan.json", "windows.parquet", "shards.parquet"):
        return True
    return parts[-1] == "config.json" or parts[-2] in ("commits", "snapshots")


def faults_in(store: Store) -> list[str]:
    """Verify everything that is there, however little."""
    try:
        return [str(fault) for fault in verify(store, "", deep=True)]
    except TokenmillError as error:
        return [] if "holds no stage folder" in str(error) else [str(error)]
