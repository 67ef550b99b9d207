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
from tokenmill.manifests.identity import sha256_hex
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
        asked = _asked(stage, shipment.digest, how)
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


def _asked(stage: str, recipe: str, how: Submission) -> dict[str, str]:
    """Return what a job of the caller's name has to have been asked for; Ray shows it, so of variables names alone."""
    return {
        "stage": stage,
        "recipe": recipe,
        "flags": " ".join(how.flags),
        "env": " ".join(sorted(set(how.env))),
        "pip": sha256_hex(how.pip.read_bytes()) if how.pip is not None else "",
    }


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
    found = {key: (info.metadata or {}).get(key, "") for key in asked}
    if found != asked:
        differs = ", ".join(key for key in asked if found[key] != asked[key])
        raise RecipeError(f"--job-id {job}: a job of this name was submitted with another {differs}; take a new name")
    again = "; take a new --job-id to resume" if str(info.status) in ("FAILED", "STOPPED") else ""
    log.warning("job %s is there already (%s); it is not submitted again%s", job, info.status, again)
    return True


def follow(client: Any, job: str, address: str) -> int:
    """Print a job's log until it ends; returns 0 if it succeeded, else its driver's exit code.

    Ctrl-C ends only the following. Raises RunError when the head is gone for longer than two minutes.
    """
    try:
        info = asyncio.run(_Follower(client, job).until_the_end())
    except KeyboardInterrupt:
        log.warning(
            "job %s goes on; to stop it: ray job stop --address %s %s (what it committed stays, a new job resumes; "
            "what is in flight has 3 s, or the head's RAY_JOB_STOP_WAIT_TIME_S)",
            *(job, address, job),
        )
        return 1
    if str(info.status) == "SUCCEEDED":
        return 0
    log.error("job %s %s: %s", job, info.status, str(info.message).partition("\n")[0])  # its log is printed already
    return int(info.driver_exit_code or 1)


@dataclass
class _Follower:
    """A job's log on its way to the terminal: how much of it is shown, and since when the job server is away.

    A stream may be silent for hours and then break (a proxy drops it, the head restarts): that alone says nothing, so
    the server is asked for the job as well, and only one that answers neither for two minutes is given up.
    """

    client: Any
    job: str
    shown: int = 0
    failing_since: float | None = None
    ended_since: float | None = None

    async def until_the_end(self) -> Any:
        """Print what is new until the job has ended; returns its info."""
        while True:
            is_whole = await self._print_new()
            info = await self._ask()
            if info is not None and info.status.is_terminal() and (is_whole or self._log_is_lost()):
                return info
            await asyncio.sleep(_PAUSE_S)

    async def _print_new(self) -> bool:
        """Print what a new stream has behind what was shown; False if it broke. It starts with the first line again."""
        import aiohttp

        position = 0
        try:
            async for text in self.client.tail_job_logs(self.job):
                self.failing_since, start, position = None, position, position + len(text)
                if position > self.shown:
                    sys.stdout.write(text[max(0, self.shown - start) :])
                    sys.stdout.flush()
                    self.shown = position
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            log.debug("the log stream broke (%s); trying again", error)
            return False
        return True

    async def _ask(self) -> Any:
        """Return the job's info, or None where the server does not answer; raises RunError when that lasts."""
        try:
            info = await asyncio.to_thread(self.client.get_job_info, self.job)
        except (RuntimeError, OSError) as error:
            self.failing_since = time.monotonic() if self.failing_since is None else self.failing_since
            if time.monotonic() - self.failing_since <= _PATIENCE_S:
                return None
            raise RunError(
                f"job {self.job}: the job server did not answer for {_PATIENCE_S:.0f} s ({_brief(error)}); if the "
                f"cluster still runs, so does the job: follow it again with --job-id {self.job}"
            ) from error
        self.failing_since = None
        return info

    def _log_is_lost(self) -> bool:
        """Say whether the log of a job that has ended could not be read to its end for two minutes."""
        self.ended_since = time.monotonic() if self.ended_since is None else self.ended_since
        if time.monotonic() - self.ended_since <= _PATIENCE_S:
            return False
        log.warning("job %s: the rest of its log cannot be read", self.job)
        return True


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
