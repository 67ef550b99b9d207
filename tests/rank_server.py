"""Starts ranks by forking, with torch and transformers loaded once: `python -m tests.rank_server WORKER`.

A rank of the launcher's costs seven seconds of imports; a run that is killed twice on two ranks starts six. What the
fork then does is what the worker (`tokenmill.train.vision_worker`, say) does, in a process of its own that can be
killed like any other.

A line `{"job": path, "report": path, "ranks": n, "environment": {}}` on stdin starts ranks; their process ids come back
as one line, and a line with their exit codes (negative: the signal) once all have ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any


def main() -> None:
    import torch

    train = import_module(sys.argv[1]).loaded()
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [_forked(request, rank, train) for rank in range(request["ranks"])]
        print(json.dumps(pids), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def _forked(request: dict[str, Any], rank: int, train: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    from tokenmill.train.rank_process import rank_main
    from tokenmill.train.stopping import RENDEZVOUS_VARIABLE

    report = request["report"]
    log = os.open(f"{report}/log-{rank:02d}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ranks = request["ranks"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    os.environ |= request["environment"]
    os.environ[RENDEZVOUS_VARIABLE] = f"file://{report}/rendezvous"
    code = 70
    try:
        code = rank_main([request["job"], report], train)
    finally:
        os._exit(code)


class RankServer:
    """The server as a test sees it."""

    def __init__(self, worker: str = "tests.vision_ranks", *, within: Sequence[str] = ()) -> None:
        """Start a server; `within` are the words of a command that runs the command it is given."""
        command = [*within, sys.executable, "-m", "tests.rank_server", worker]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> RankServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, job: str, report: Path, ranks: int, **environment: str) -> list[int]:
        """Start ranks with additions to their environment; returns their process ids."""
        report.mkdir(parents=True)
        (report / "job.json").write_text(job)
        self._tell({"job": str(report / "job.json"), "report": str(report), "ranks": ranks, "environment": environment})
        found = self._heard()
        return list(json.loads(self._heard() if found == "ready" else found))

    def ended(self) -> Sequence[int]:
        """Wait for the ranks that were started; returns their exit codes."""
        return list(json.loads(self._heard()))

    def _tell(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the server of ranks has ended"
        return line


if __name__ == "__main__":
    main()
