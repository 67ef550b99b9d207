"""What `tokenmill generate` does: the recipe's own prompts, then its tables of prompts and of questions."""

from __future__ import annotations

from typing import Any

from tokenmill.pipelines.drawing_jobs import JobOptions, draw_jobs, jobs_rows
from tokenmill.pipelines.generation import generate_pictures
from tokenmill.pipelines.question_jobs import answer_jobs
from tokenmill.recipe import Recipe


def generate(recipe: Recipe, options: JobOptions) -> dict[str, Any]:
    """Draw and answer whatever is not there yet; returns a row of what there is, jobs by name under `jobs`.

    Raises as `generate_pictures`, `draw_jobs` and `answer_jobs` do.
    """
    asked = recipe.generate
    has_jobs = bool(asked.jobs or asked.questions)
    row = {} if has_jobs and not asked.prompts and asked.clips is None else generate_pictures(recipe)
    if not has_jobs:
        return row
    drawn, answered = draw_jobs(recipe, options=options), answer_jobs(recipe, options=options)
    return {**row, "jobs": jobs_rows(drawn) | jobs_rows(answered)}
