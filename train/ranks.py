"""Processes of one training run on this machine: started, watched, told to stop, and asked how they ended.

Each rank is a `python -m` of this machine, started here, so neither torch nor DeepSpeed is loaded in the caller;
torch's own launcher would add four seconds of imports and a port to agree on. Several machines: start the same command
on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.rows import read_rows
from tokenmill.train.stopping import LAUNCHER_VARIABLE, RENDEZVOUS_VARIABLE

_POLL_S = 0.1
_GRACE_S = 60.0  # for ranks to save after SIGTERM, before SIGKILL
_LOG_LINES = 15

Process = subprocess.Popen[bytes]
OnRow = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGroup:
    """What to start: `module` is run as `python -m module JOB REPORT`; `folder` is the run's, and gets their logs."""

    module: str
    job: str
    folder: RunFolder
    ranks: int
    threads_per_rank: int
    device: str
    title: str = "train"


def run_ranks(group: RankGroup, on_row: OnRow | None = None) -> dict[str, Any]:
    """Start the ranks, wait for their end and return what they report.

    `on_row` is called with each new row of metrics while they run. SIGTERM and SIGINT to this process make the ranks
    save and stop. Raises RecipeError or RunError with the ranks' own message, or the end of their log.
    """
    with TemporaryDirectory(prefix="tokenmill-train-") as scratch:
        folder = Path(scratch)
        (folder / "job.json").write_text(group.job, encoding="utf-8")
        with _started(group, folder) as processes, _forwarding_signals(processes):
            handed_on = 0
            while _watch(processes):
                handed_on += _hand_on(folder / "rows.jsonl", handed_on, on_row)
                time.sleep(_POLL_S)
            _hand_on(folder / "rows.jsonl", handed_on, on_row)
        _keep_logs(group, folder)
        return _outcome(group.title, folder, [process.returncode for process in processes])


def num_nodes() -> int:
    """Return how many machines take part; the same command is started on each."""
    return int(os.environ.get("NNODES", "1"))


@contextmanager
def _started(group: RankGroup, folder: Path) -> Iterator[list[Process]]:
    """Start this machine's ranks; none of them outlives the block."""
    command = [sys.executable, "-m", group.module, str(folder / "job.json"), str(folder)]
    with ExitStack() as stack:
        processes = []
        for local in range(group.ranks):
            log = stack.enter_context((folder / f"log-{local:02d}.txt").open("wb"))
            environment = _environment(group, folder, local)
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        try:
            yield processes
        finally:
            _end(processes)


def _environment(group: RankGroup, folder: Path, local: int) -> dict[str, str]:
    ranks = group.ranks
    nodes, node = num_nodes(), int(os.environ.get("NODE_RANK", "0"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {
        **os.environ,
        "RANK": str(node * ranks + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(nodes * ranks),
        "OMP_NUM_THREADS": str(group.threads_per_rank or max(1, cores // ranks)),
        RENDEZVOUS_VARIABLE: f"file://{folder / 'rendezvous'}" if nodes == 1 else "env://",
        LAUNCHER_VARIABLE: str(os.getpid()),
    }
    if group.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _watch(processes: Sequence[Process]) -> bool:
    """Say whether to go on waiting; one rank's failure ends the others, which would wait for it for ever."""
    codes = [process.poll() for process in processes]
    return None in codes and not any(codes)


def _end(processes: Sequence[Process]) -> None:
    """Ask what still runs to stop, then make it."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _hand_on(rows: Path, start: int, on_row: OnRow | None) -> int:
    """Hand on the rows of metrics from number `start` on; returns how many there were."""
    if on_row is None:
        return 0
    new = list(islice(read_rows(rows), start, None))
    for row in new:
        on_row(row)
    return len(new)


@contextmanager
def _forwarding_signals(processes: Sequence[Process]) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on as SIGTERM while the ranks run; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(_number: int, _frame: FrameType | None) -> None:
        for process in processes:
            process.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_logs(group: RankGroup, folder: Path) -> None:
    first = int(os.environ.get("NODE_RANK", "0")) * group.ranks
    for local, path in enumerate(sorted(folder.glob("log-*.txt"))):
        group.folder.store.put(group.folder.at(f"logs/log-{first + local:02d}.txt"), path.read_bytes())


def _outcome(title: str, folder: Path, codes: Sequence[int]) -> dict[str, Any]:
    result = folder / "result.json"
    if result.exists() and not any(codes):
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*.json"))]
    for error in errors:
        if error["exit_code"] == RecipeError.exit_code:
            raise RecipeError(error["message"])
    for local, code in enumerate(codes):
        if code < 0 and code != -signal.SIGTERM:
            raise RunError(
                f"{title}: rank {local} was killed by signal {-code}; run again to go on from the last checkpoint"
            )
    if errors:
        raise RunError(min(errors, key=lambda error: error["at"])["message"])
    tail = (folder / "log-00.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    raise RunError(
        f"{title}: the ranks ended with exit codes {list(codes)}; the last lines of the first:\n" + "\n".join(tail)
    )
