"""What travels with a submitted job: the package, the recipe as it was meant here, the environment, the versions.

Overrides are written into the shipped recipe, and the environment into a file beside it, so that no value of either
stands in the job's entry point or its `runtime_env`, which Ray shows to whoever opens its dashboard and writes to its
logs. The price: both lie in the job's folder on every node until Ray's cache drops it, as the recipe always did.
The package is 3 MB; Ray names it by its content, so the same one is uploaded once.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.pipelines.job_start import ENVIRONMENT_FILE, RECIPE_FILE, VERSIONS_FILE
from tokenmill.recipe import check_recipe, read_recipe

# What is no secret and changes where data is looked for; credentials are the cluster's own, or named with --env.
FORWARDED = (
    "TOKENMILL_*",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "GOOGLE_CLOUD_PROJECT",
    "AZURE_STORAGE_ACCOUNT_NAME",
)


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Two folders for the upload; `digest` names what the job was asked to do."""

    working_dir: Path
    package: Path
    digest: str


@contextmanager
def pack(recipe: Path, overrides: Sequence[str], environment: Mapping[str, str]) -> Iterator[Shipment]:
    """Write what a job needs into a temporary folder.

    Raises:
        RecipeError: the recipe is wrong, or names something by a path that only means something here.
    """
    import tokenmill

    value = read_recipe(recipe, overrides)
    check_recipe(value, str(recipe))
    _refuse_relative_paths(value, str(recipe))
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as scratch:
        working, package = Path(scratch) / "work", Path(scratch) / "tokenmill"
        working.mkdir()
        (working / RECIPE_FILE).write_text(text, encoding="utf-8")
        (working / ENVIRONMENT_FILE).write_text(json.dumps(dict(environment)), encoding="utf-8")
        (working / VERSIONS_FILE).write_text(json.dumps(versions()), encoding="utf-8")
        source = Path(tokenmill.__file__).parent
        shutil.copytree(source, package, symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
        yield Shipment(working_dir=working, package=package, digest=sha256_hex(text.encode()))


def forwarded(names: Sequence[str]) -> dict[str, str]:
    """Return the variables of this process to forward: the usual ones and `names` (`NAME` or `PREFIX_*`).

    Raises:
        RecipeError: a name is not set here; a job that lacks it would fail minutes later.
    """
    for name in names:
        if not any(fnmatchcase(one, name) for one in os.environ):
            raise RecipeError(f"--env {name}: no such variable is set here")
    wanted = (*FORWARDED, *names)
    return {name: value for name, value in os.environ.items() if any(fnmatchcase(name, one) for one in wanted)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of what tokenmill depends on directly, as installed here."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    try:
        required = importlib.metadata.requires("tokenmill") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    for line in required:
        match = re.match(r"[A-Za-z0-9._-]+", line)
        if match is None or "extra ==" in line:
            continue
        try:
            found[match[0]] = importlib.metadata.version(match[0])
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _refuse_relative_paths(value: Mapping[str, Any], where: str) -> None:
    must_be_found = {"root": value["root"]}
    must_be_found |= {f"sources.{name}.url": source["url"] for name, source in value["sources"].items()}
    others = {path: text for path, text in _strings(value, "") if _is_local_path(text)}
    for path, text in {**must_be_found, **others}.items():
        if "://" not in text and not Path(text).is_absolute():
            raise RecipeError(
                f"{where}: {path}: {text!r} is a relative path, and a job runs in a folder of its own on the cluster; "
                "give a URL, or an absolute path that every node sees"
            )


def _strings(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield (key path, text) of every text in a recipe."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence):
        for number, item in enumerate(value):
            yield from _strings(item, f"{path}.{number}")


def _is_local_path(text: str) -> bool:
    """Say whether a setting that may be a name or a path is a path: it has a slash and is there."""
    return "/" in text and len(text) < 1024 and "\n" not in text and Path(text).exists()
