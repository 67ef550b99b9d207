"""Processes of one training run on this machine: started, watched, told to stop, and asked how they ended.

Each rank is a `python -m` of this machine, started here, so neither torch nor DeepSpeed is loaded in the caller;
torch's own launcher would add four seconds of imports and a port to agree on. Several machines: start the same command
on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill.errors import DivergedError, RecipeError, RunError
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.end_signals import EndRequest, Process, held_back, listening
from tokenmill.train.rank_process import error_name
from tokenmill.train.rows import RowTail
from tokenmill.train.stopping import LAUNCHER_VARIABLE, RENDEZVOUS_VARIABLE

_POLL_S = 0.1
_GRACE_S = 60.0  # for ranks to save after SIGTERM, before SIGKILL
_GRACE_ALONE_S = 10.0  # for ranks to end once one of them is dead: they wait for it and cannot save
_LOG_LINES = 15

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


class DeadRankError(RunError):
    """A rank died or failed in a way that another start may not meet again."""


def run_ranks(group: RankGroup, on_row: OnRow | None = None, request: EndRequest | None = None) -> dict[str, Any]:
    """Start the ranks, wait for their end and return what they report.

    `on_row` is called with each new row of metrics while they run. SIGTERM, SIGINT and SIGUSR1 to this process make
    the ranks save and stop; a caller that listens already hands in its `request`. Raises RecipeError, DivergedError or
    DeadRankError with the ranks' own message, or the end of their log.
    """
    if request is None:
        with listening() as request:
            return run_ranks(group, on_row, request)
    with TemporaryDirectory(prefix="tokenmill-train-") as scratch:
        folder = Path(scratch)
        (folder / "job.json").write_text(group.job, encoding="utf-8")
        with _started(group, folder) as processes, request.passed_on(processes):
            rows = RowTail(folder / "rows.jsonl")
            while _watch(processes):
                _hand_on(rows, on_row)
                time.sleep(_POLL_S)
            codes = [process.poll() for process in processes]  # before the others are ended for it
            _hand_on(rows, on_row)
        _keep_logs(group, folder)
        return _outcome(group, folder, codes)


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
            with held_back():
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
    grace_s = _GRACE_ALONE_S if any(process.poll() for process in processes) else _GRACE_S
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace_s
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _hand_on(rows: RowTail, on_row: OnRow | None) -> None:
    """Hand on the rows of metrics that are new."""
    if on_row is not None:
        for row in rows.new():
            on_row(row)


def _keep_logs(group: RankGroup, folder: Path) -> None:
    for local, path in enumerate(sorted(folder.glob("log-*.txt"))):
        rank = _first_rank(group) + local
        group.folder.store.put(group.folder.at(f"logs/log-{rank:02d}.txt"), path.read_bytes())


def _first_rank(group: RankGroup) -> int:
    return int(os.environ.get("NODE_RANK", "0")) * group.ranks


def _outcome(group: RankGroup, folder: Path, codes: Sequence[int | None]) -> dict[str, Any]:
    """Return what the ranks report, or raise what they failed with; None is the code of one that had not ended."""
    if not any(codes) and None not in codes:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return found
    first = _first_rank(group)
    errors = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*.json"))}
    for error in errors.values():
        if error["exit_code"] == RecipeError.exit_code:
            raise RecipeError(error["message"])
        if error["kind"] == DivergedError.__name__:
            raise DivergedError(error["message"])
    for rank, code in enumerate(codes, first):  # one that said nothing was there first; the others only missed it
        if code and error_name(rank) not in errors:
            raise DeadRankError(_told_of(group.title, rank, code, folder / f"log-{rank - first:02d}.txt"))
    raise DeadRankError(min(errors.values(), key=lambda error: error["at"])["message"])


def _told_of(title: str, rank: int, code: int, log: Path) -> str:
    """Say how a rank ended that could not say so itself."""
    if code < 0:
        return f"{title}: rank {rank} was killed by signal {-code}; run again to go on from the last checkpoint"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"{title}: rank {rank} ended with exit code {code}; the last lines of its log:", *lines])
