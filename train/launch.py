"""Starting the ranks of a training run and waiting for them: what the command line calls.

Each rank is a process of this machine, started and watched here, so neither torch nor DeepSpeed is loaded in the
caller; torch's own launcher would add four seconds of imports and a port to agree on. Several machines: start the same
command on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
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
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.train.checkpoints import RunFolder, exported_step
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.rows import read_rows
from tokenmill.train.schedule import total_steps
from tokenmill.train.stopping import LAUNCHER_VARIABLE, RENDEZVOUS_VARIABLE

_POLL_S = 0.1
_GRACE_S = 60.0  # for ranks to save after SIGTERM, before SIGKILL
_LOG_LINES = 15

Process = subprocess.Popen[bytes]


def launch(job: TrainJob, on_row: Callable[[Mapping[str, Any]], None] | None = None) -> TrainResult:
    """Train a job on `settings.ranks` processes of this machine and return how it ended.

    `on_row` is called with each new row of metrics while it runs. SIGTERM and SIGINT to this process make the ranks
    save and stop. A run that is finished and exported is left as it is, without starting any rank. Raises RecipeError
    or RunError with the ranks' own message, or the end of their log.
    """
    finished = _finished(job)
    if finished is not None:
        return finished
    with TemporaryDirectory(prefix="tokenmill-train-") as scratch:
        folder = Path(scratch)
        (folder / "job.json").write_text(job.model_dump_json(by_alias=True), encoding="utf-8")
        with _ranks(job, folder) as processes, _forwarding_signals(processes):
            handed_on = 0
            while _watch(processes):
                handed_on += _hand_on(folder / "rows.jsonl", handed_on, on_row)
                time.sleep(_POLL_S)
            _hand_on(folder / "rows.jsonl", handed_on, on_row)
        _keep_logs(job, folder)
        return _outcome(folder, [process.returncode for process in processes])


def _finished(job: TrainJob) -> TrainResult | None:
    """Return the result of a run that has nothing left to do: same plan and model, all steps, exported."""
    store = open_store(job.root, job.options)
    folder = RunFolder(store, job.settings.run)
    steps = folder.steps()
    if not steps:
        return None
    plan, checkpoint = open_plan(store, job.plan), folder.read(steps[-1])
    total = total_steps(job.settings, plan.num_packs)
    is_same = (
        checkpoint.loader["plan_id"] == plan.plan_id
        and checkpoint.loader["global_packs"] == job.settings.global_packs_per_step
        and checkpoint.settings["model"] == job.settings.model.model_dump(mode="json")
    )
    if not is_same or checkpoint.step < total or exported_step(folder) != checkpoint.step:
        return None
    return TrainResult(step=checkpoint.step, total_steps=total, stopped=False, export=folder.at("export"))


@contextmanager
def _ranks(job: TrainJob, folder: Path) -> Iterator[list[Process]]:
    """Start this machine's ranks; none of them outlives the block."""
    command = [sys.executable, "-m", "tokenmill.train.worker", str(folder / "job.json"), str(folder)]
    with ExitStack() as stack:
        processes = []
        for local in range(job.settings.ranks):
            log = stack.enter_context((folder / f"log-{local:02d}.txt").open("wb"))
            environment = _environment(job, folder, local)
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        try:
            yield processes
        finally:
            _end(processes)


def _environment(job: TrainJob, folder: Path, local: int) -> dict[str, str]:
    ranks = job.settings.ranks
    nodes, node = int(os.environ.get("NNODES", "1")), int(os.environ.get("NODE_RANK", "0"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {
        **os.environ,
        "RANK": str(node * ranks + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(nodes * ranks),
        "OMP_NUM_THREADS": str(job.settings.threads_per_rank or max(1, cores // ranks)),
        RENDEZVOUS_VARIABLE: f"file://{folder / 'rendezvous'}" if nodes == 1 else "env://",
        LAUNCHER_VARIABLE: str(os.getpid()),
    }
    if job.settings.device == "cpu":
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


def _hand_on(rows: Path, start: int, on_row: Callable[[Mapping[str, Any]], None] | None) -> int:
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


def _keep_logs(job: TrainJob, folder: Path) -> None:
    store = open_store(job.root, job.options)
    first = int(os.environ.get("NODE_RANK", "0")) * job.settings.ranks
    for local, path in enumerate(sorted(folder.glob("log-*.txt"))):
        store.put(f"checkpoints/{job.settings.run}/logs/log-{first + local:02d}.txt", path.read_bytes())


def _outcome(folder: Path, codes: Sequence[int]) -> TrainResult:
    result = folder / "result.json"
    if result.exists() and not any(codes):
        return TrainResult.from_json(json.loads(result.read_text(encoding="utf-8")))
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*.json"))]
    for error in errors:
        if error["exit_code"] == RecipeError.exit_code:
            raise RecipeError(error["message"])
    for local, code in enumerate(codes):
        if code < 0 and code != -signal.SIGTERM:
            raise RunError(
                f"train: rank {local} was killed by signal {-code}; run again to go on from the last checkpoint"
            )
    if errors:
        raise RunError(min(errors, key=lambda error: error["at"])["message"])
    tail = (folder / "log-00.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    raise RunError(
        f"train: the ranks ended with exit codes {list(codes)}; the last lines of the first:\n" + "\n".join(tail)
    )
