"""A rank that does as it is told instead of training: `python -m tests.dying_rank JOB REPORT`.

JOB holds a list for every start, and in it a word for every rank: `well`, `killed`, `silent`, `fails`, `diverges`,
`recipe`, `waits` or `until_asked`; behind it `saves` (makes what stands for a checkpoint) or `slowly` (as if there were
much to import). It loads no torch, so a start costs what starting a process costs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tokenmill.train.end_signals import TO_RANKS, let_in


def main(job: Path, report: Path) -> int:
    told, rank = json.loads(job.read_text()), int(os.environ["RANK"])
    here = Path(told["folder"])
    with (here / f"starts-{rank}").open("a") as starts:
        starts.write(f"{time.monotonic()}\n")
    start = len((here / f"starts-{rank}").read_text().splitlines()) - 1
    word, *more = told["starts"][start][rank].split()
    asked = threading.Event()
    for number in TO_RANKS:
        signal.signal(number, lambda *_: asked.set())
    if "slowly" in more:
        time.sleep(0.3)
    let_in()
    if "saves" in more:
        (here / f"step-{start}").touch()
    return _ended(word, rank, report, asked)


def _ended(word: str, rank: int, report: Path, asked: threading.Event) -> int:
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "silent":
        print("the last words")
        return 3
    if word in ("fails", "diverges", "recipe"):
        kind, code = {"fails": ("RuntimeError", 1), "diverges": ("DivergedError", 1), "recipe": ("RecipeError", 2)}[
            word
        ]
        told = {"message": f"rank {rank} {word}", "exit_code": code, "kind": kind, "at": time.time()}
        (report / f"error-{rank:05d}.json").write_text(json.dumps(told))
        return code
    if word == "waits":  # for a rank that is dead, deaf to signals as in a collective
        time.sleep(3600)
    if word == "until_asked" and not asked.wait(60):
        return 4
    if rank == 0:
        result = {"step": 7, "total_steps": 9, "stopped": word == "until_asked", "export": None}
        (report / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
