"""`tokenmill submit`: a command as a job on a Ray cluster, with the project and the recipe shipped along.

The package travels as a copy with its links resolved (Ray's `py_modules`), the recipe as the job's working directory.
Environment variables travel by name, never by value in a log; what they hold is read here.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenmill.errors import RunError

log = logging.getLogger(__name__)
_FORWARDED = ("AWS_", "GOOGLE_", "AZURE_", "FSSPEC_", "TOKENMILL_")


def submit(stage: str, recipe: Path, address: str, overrides: Sequence[str], *, no_wait: bool) -> int:
    """Submit a stage (or `run`), follow its log, and return its exit code; with `no_wait` print its id and return 0.

    Raises:
        RunError: there is no job server at `address`.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RunError(f"{address}: no Ray job server answers ({error})") from error
    with _shipment(recipe) as (folder, package):
        command = ["python", "-m", "tokenmill.cli", stage, recipe.name, *overrides]
        job = client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={
                "working_dir": str(folder),
                "py_modules": [str(package)],
                "env_vars": {**_environment(), "RAY_ADDRESS": "auto"},
            },
        )
    sys.stdout.write(f"{job}\n")
    return 0 if no_wait else follow(client, job)


def follow(client: Any, job: str) -> int:
    """Print a job's log until it ends; returns 0 if it succeeded, else its driver's exit code."""
    shown = 0
    while True:
        ended = client.get_job_status(job).is_terminal()
        logs = client.get_job_logs(job)
        sys.stdout.write(logs[shown:])
        sys.stdout.flush()
        shown = len(logs)
        if ended:
            break
        time.sleep(1.0)
    info = client.get_job_info(job)
    if str(info.status) == "SUCCEEDED":
        return 0
    log.error("job %s %s: %s", job, info.status, str(info.message).partition("\n")[0])  # its log is printed already
    return int(info.driver_exit_code or 1)


@contextmanager
def _shipment(recipe: Path) -> Iterator[tuple[Path, Path]]:
    """Give a folder with the recipe and one with the package, both for the upload."""
    import tokenmill

    with tempfile.TemporaryDirectory(prefix="tokenmill-") as scratch:
        working, package = Path(scratch) / "work", Path(scratch) / "tokenmill"
        working.mkdir()
        shutil.copy(recipe, working / recipe.name)
        source = Path(tokenmill.__file__).parent
        shutil.copytree(source, package, symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
        yield working, package


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
