"""A root with an exported model of random weights, and a table of good and bad prompts: what tests of jobs run on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.test_pipelines_generation import export
from tests.tiny import picture

from tokenmill.manifests.storage import open_store
from tokenmill.recipe import Recipe, check_recipe

ROWS: tuple[Any, ...] = (
    {"prompt": "a red box", "tag": "single_object", "include": [{"class": "box", "count": 1}]},
    {"prompt": "ein Café", "key": "two", "height": 16, "width": 16},
    {"prompt": ""},
    {"prompt": "wrong size", "height": 33},
    {"prompt": "x" * 250},
    {"prompt": "a clip", "seconds": 1.0, "fps": 8, "height": 16, "width": 16, "samples": 1},
    {"prompt": "\ud800"},
    {"prompt": "wrong seed", "seed": "many"},
    {"prompt": "its own seed", "seed": 7, "samples": 2, "negative": "grey"},
    "no object",
)
FAILED = {
    "bad_json": 1, "bad_size": 1, "bad_text": 1, "bad_value": 1, "empty_prompt": 1, "too_long": 1,
}  # fmt: skip
JOB: dict[str, Any] = {"samples": 3, "height": 32, "width": 48, "unit_rows": 3, "batch_size": 4}


def write_rows(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    """Write a table, and beside it a picture for the recipe's one source."""
    (path.parent / "photo.png").write_bytes(picture(0))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_export(root: Path, scratch: Path, *, seed: int = 0) -> None:
    """Put a model of random weights where a run of training would."""
    scratch.mkdir(parents=True, exist_ok=True)
    export(open_store(str(root)), scratch, "none", seed=seed)


def job_recipe(root: Path, prompts: Path, job: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return a recipe with the one job `boxes`, as a mapping."""
    jobs = {"boxes": {"prompts": str(prompts), **JOB, **(job or {})}}
    return {
        "root": str(root),
        "sources": {"photos": {"kind": "images", "url": str(prompts.parent)}},  # of no use to a job
        "execution": {"executor": "inline"},
        "generate": {"jobs": jobs, "evaluate_documents": 0},
        **more,
    }


def checked(root: Path, prompts: Path, job: Mapping[str, Any] | None = None, **more: Any) -> Recipe:
    return check_recipe(job_recipe(root, prompts, job, **more), "test")
