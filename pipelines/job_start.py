"""The cluster's side of a submitted job: `python -m tokenmill.pipelines.job_start STAGE`, in the job's folder.

Ray starts this as the driver, and calls `take_environment` first thing in every worker process of the job
(`worker_process_setup_hook`), so what was forwarded is set before any library looks at it. Imports nothing heavy: a
worker pays a millisecond for it.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
from pathlib import Path

ENVIRONMENT_FILE = "tokenmill-environment.json"
VERSIONS_FILE = "tokenmill-versions.json"
RECIPE_FILE = "recipe.yaml"
log = logging.getLogger("tokenmill.job")


def take_environment() -> None:
    """Set the variables that travelled with the job; does nothing in a process that has no such file."""
    path = Path(ENVIRONMENT_FILE)
    if path.is_file():
        os.environ.update(json.loads(path.read_text(encoding="utf-8")))


def differing_versions() -> list[str]:
    """Name what is installed here in another version than where the job was submitted."""
    path = Path(VERSIONS_FILE)
    wanted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [f"{name} {here} (there {there})" for name, there in wanted.items() if (here := _version(name)) != there]


def _version(name: str) -> str:
    if name == "python":
        return ".".join(map(str, sys.version_info[:2]))
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def main(arguments: list[str]) -> int:
    """Run a stage on the recipe that travelled; returns its exit code."""
    take_environment()
    from tokenmill.cli import main as run

    stage, *rest = arguments
    differing = differing_versions()
    if differing:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        log.warning(
            "the cluster has other versions than the submitter: %s; files are byte-identical for one set of libraries "
            "only",
            ", ".join(differing),
        )
    return run([stage, RECIPE_FILE, *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
