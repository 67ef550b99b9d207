"""What `tokenmill generate` does: the recipe's own prompts, then its tables of prompts and of questions."""

from __future__ import annotations

from typing import Any

from tokenmill.pipelines.drawing_jobs import draw_jobs, jobs_rows
from tokenmill.pipelines.generation import generate_pictures
from tokenmill.recipe import Recipe


def generate(
    recipe: Recipe, *, limit: int | None = None, retry_failed: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Draw whatever is not drawn yet; returns a row of what there is, jobs by name under `jobs`.

    Raises as `generate_pictures` and `draw_jobs` do.
    """
    asked = recipe.generate
    has_jobs = bool(asked.jobs)
    row = {} if has_jobs and not asked.prompts and asked.clips is None else generate_pictures(recipe)
    if not has_jobs:
        return row
    drawn = draw_jobs(recipe, limit=limit, retry_failed=retry_failed, quiet=quiet)
    return {**row, "jobs": jobs_rows(drawn)}
