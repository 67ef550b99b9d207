"""`tokenmill submit`: a stage as a job on a Ray cluster, its log followed, its exit code carried.

What travels is in `shipment.py`; what starts there in `job_start.py`. The log comes through Ray's own stream, each
byte once (asking for the whole log each second would be 1.8 GB an hour for a log of 500 KB). A head that goes away
for less than two minutes is waited for, and the log goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.pipelines.shipment import forwarded, pack

log = logging.getLogger(__name__)
_PATIENCE_S = 120.0
_PAUSE_S = 1.0
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Where and how to submit.

    Attributes:
        address: of the job server, `http://<head>:8265`.
        wait: follow the log to the end.
        job_id: a name of the caller's for the job; one that is there already is followed, not submitted again.
        env: names of variables to forward beside the usual ones (`NAME` or `PREFIX_*`).
        pip: a requirements file that Ray installs on the nodes first; None: the image has all of it.
        flags: of the stage's own command, such as `--limit=2`.
    """

    address: str
    wait: bool = True
    job_id: str | None = None
    env: tuple[str, ...] = ()
    pip: Path | None = None
    flags: tuple[str, ...] = ()


def submit(stage: str, recipe: Path, overrides: Sequence[str], how: Submission) -> int:
    """Submit a stage (or `run`), follow its log, and return its exit code; without `wait` print its id and return 0.

    Raises:
        RecipeError: the recipe cannot travel as it is, a variable is not set, a job of that id does something else.
        RunError: there is no job server at the address, or it went away for good.
    """
    environment = forwarded(how.env)
    if how.pip is not None and not how.pip.is_file():
        raise RecipeError(f"--pip {how.pip}: no such file")
    with pack(recipe, overrides, environment) as shipment:
        client = _client(how.address)
        asked = {"stage": stage, "recipe": shipment.digest}
        job = how.job_id if how.job_id and _is_there(client, how.job_id, asked) else None
        if job is None:
            runtime: dict[str, Any] = {
                "working_dir": str(shipment.working_dir),
                "py_modules": [str(shipment.package)],
                "worker_process_setup_hook": "tokenmill.pipelines.job_start.take_environment",
                "env_vars": {"RAY_ADDRESS": "auto", "OMP_NUM_THREADS": "1"},
            }
            if how.pip is not None:
                runtime["pip"] = str(how.pip)
            command = ["python", "-m", "tokenmill.pipelines.job_start", stage, *how.flags]
            job = _submit_job(
                client, entrypoint=shlex.join(command), runtime_env=runtime, submission_id=how.job_id, metadata=asked
            )
    sys.stdout.write(f"{job}\n")
    sys.stdout.flush()
    return follow(client, job, how.address) if how.wait else 0


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:  # each sets its own level when it is imported
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RunError(f"{address}: no Ray job server answers ({_brief(error)})") from error


def _submit_job(client: Any, **what: Any) -> str:
    """Submit, waiting for a head that has just started and has no agent for jobs yet."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return str(client.submit_job(**what))
        except (RuntimeError, OSError) as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise RunError(f"the job was refused: {_brief(error)}") from error
        time.sleep(_PAUSE_S)


def _is_there(client: Any, job: str, asked: dict[str, str]) -> bool:
    """Say whether a job of this id exists; raises RecipeError if it was asked to do something else."""
    try:
        info = client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            return False
        raise RunError(f"job {job}: {_brief(error)}") from error
    found = {key: (info.metadata or {}).get(key) for key in asked}
    if found != asked:
        differs = ", ".join(key for key in asked if found[key] != asked[key])
        raise RecipeError(f"--job-id {job}: a job of this name was submitted with another {differs}; take a new name")
    log.warning("job %s is there already (%s); it is not submitted again", job, info.status)
    return True


def follow(client: Any, job: str, address: str) -> int:
    """Print a job's log until it ends; returns 0 if it succeeded, else its driver's exit code.

    Ctrl-C ends only the following. Raises RunError when the head is gone for longer than two minutes.
    """
    try:
        info = asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        log.warning(
            "job %s goes on; to stop it: ray job stop --address %s %s (what it committed stays, a new job resumes)",
            *(job, address, job),
        )
        return 1
    if str(info.status) == "SUCCEEDED":
        return 0
    log.error("job %s %s: %s", job, info.status, str(info.message).partition("\n")[0])  # its log is printed already
    return int(info.driver_exit_code or 1)


async def _follow(client: Any, job: str) -> Any:
    """Print what is new until the job has ended; returns its info."""
    import aiohttp

    shown, heard = 0, time.monotonic()
    while True:
        try:
            position = 0
            async for text in client.tail_job_logs(job):  # a new stream starts with the first line again
                heard, start, position = time.monotonic(), position, position + len(text)
                if position > shown:
                    sys.stdout.write(text[max(0, shown - start) :])
                    sys.stdout.flush()
                    shown = position
            info = await asyncio.to_thread(client.get_job_info, job)
            if info.status.is_terminal():
                return info
            heard = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if time.monotonic() - heard > _PATIENCE_S:
                raise RunError(
                    f"job {job}: the job server did not answer for {_PATIENCE_S:.0f} s ({_brief(error)}); if the "
                    f"cluster still runs, so does the job: follow it again with --job-id {job}"
                ) from error
            log.debug("the log stream broke (%s); trying again", error)
        await asyncio.sleep(_PAUSE_S)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
