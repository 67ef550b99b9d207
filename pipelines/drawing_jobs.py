"""Stage generate, for tables of prompts: each job of the recipe is a stage of its own over one table.

A unit is a range of rows with all of their samples. The folder is named by the model's fingerprint and by what decides
about a sample, so another model, size or temperature draws anew, and more prompts only what is new. A sample hangs on
its row and seed; in which order, by how many workers and after how many kills it is drawn changes no byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.drawing_worker import DrawingWorker
from tokenmill.pipelines.drawn import SCHEMA, STAGE
from tokenmill.pipelines.job_model import model_place
from tokenmill.pipelines.job_tables import table_place, table_units
from tokenmill.pipelines.jobs import StageWork
from tokenmill.pipelines.recipe_sections import cpus_of_worker, run_options
from tokenmill.pipelines.runner import run_stage
from tokenmill.recipe import Recipe
from tokenmill.settings_generate import DrawingJob

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How jobs are run.

    Attributes:
        limit: only the first so many units of each.
        retry_failed: do units with failed rows again.
        allow_work: False only reads; units that are missing are an IncompleteStageError then.
    """

    limit: int | None = None
    retry_failed: bool = False
    allow_work: bool = True
    quiet: bool = False


READ_ONLY = JobOptions(allow_work=False, quiet=True)


def draw_jobs(
    recipe: Recipe, jobs: Mapping[str, DrawingJob] | None = None, options: JobOptions | None = None
) -> dict[str, Snapshot]:
    """Bring jobs up to date (None: all of the recipe's), on one pool, and return what each has drawn, by name.

    Raises:
        RecipeError: a table is not there, a model is no export or cannot draw. RunError: nothing was exported yet, a
            size is no multiple of what a code stands for, or units failed after all tries.
    """
    store = open_store(recipe.root, recipe.storage)
    asked = recipe.generate.jobs if jobs is None else jobs
    works = {name: drawing_work(store, recipe, name, job) for name, job in asked.items()}
    return run_jobs(recipe, STAGE, works, options or JobOptions())


def run_jobs(recipe: Recipe, title: str, works: Mapping[str, StageWork], options: JobOptions) -> dict[str, Snapshot]:
    """Run the works of jobs on the pool `generate`; returns each one's snapshot."""
    if not works:
        return {}
    how = run_options(
        recipe.execution, STAGE, retry_failed=options.retry_failed, allow_work=options.allow_work, quiet=options.quiet
    )  # fmt: skip
    limited = [replace(work, units=work.units[: options.limit]) for work in works.values()]
    found = run_stage(title, limited, replace(how, cores=cpus_of_worker(recipe.execution, STAGE)))
    return {name: snapshots[0] for name, snapshots in zip(works, found, strict=True)}


def read_job(recipe: Recipe, name: str) -> Snapshot:
    """Return what a job of the recipe has drawn.

    Raises:
        RecipeError: the recipe has no job of that name. RunError: it is not complete.
    """
    jobs = recipe.generate.jobs
    if name not in jobs:
        known = ", ".join(jobs) or "there are none"
        raise RecipeError(f"generate.jobs: no job {name!r}; allowed: {known}")
    return draw_jobs(recipe, {name: jobs[name]}, READ_ONLY)[name]


def drawing_work(store: Store, recipe: Recipe, name: str, job: DrawingJob) -> StageWork:
    """Describe a job: its units, and the folder that this model and these settings name."""
    where = f"generate.jobs.{name}"
    place = model_place(store, recipe, job, where)
    units = table_units(
        *table_place(job.prompts, recipe.storage, f"{where}.prompts"), job.prompt_field, job.unit_rows
    )  # fmt: skip
    folder = StageDir(store=store, source=name, config=place.config(STAGE, VERSION, SCHEMA, job.identity))
    cpus = cpus_of_worker(recipe.execution, STAGE)
    return StageWork(
        title=f"{STAGE} {name}",
        folders=(folder,),
        units=units,
        make_worker=partial(DrawingWorker, job, place, cpus),
    )


def jobs_rows(drawn: Mapping[str, Snapshot]) -> dict[str, dict[str, Any]]:
    """Return what jobs have done, by name: rows in, kept and failed, samples, and where they are."""
    return {name: _row(snapshot) for name, snapshot in drawn.items()}


def _row(snapshot: Snapshot) -> dict[str, Any]:
    counts = snapshot.counts.to_json()
    totals = {name: number for name, number in snapshot.totals.items() if number and name != "codes"}
    return {**counts, **totals, "folder": snapshot.folder.path, "snapshot": snapshot.digest}
