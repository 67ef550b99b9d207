"""Stage generate, for tables of prompts: each job of the recipe is a stage of its own over one table.

A unit is a range of rows with all of their samples. The folder is named by the model's fingerprint and by what decides
about a sample, so another model, size or temperature draws anew, and more prompts only what is new. A sample hangs on
its row and seed; in which order, by how many workers and after how many kills it is drawn changes no byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from tokenmill.errors import ManifestError, RecipeError, StorageError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.drawing_model import ModelPlace
from tokenmill.pipelines.drawing_worker import DrawingWorker
from tokenmill.pipelines.drawn import SCHEMA, STAGE
from tokenmill.pipelines.exported import find_export
from tokenmill.pipelines.job_tables import table_place, table_units
from tokenmill.pipelines.jobs import StageWork
from tokenmill.pipelines.recipe_sections import cpus_of_worker, run_options
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.tokens_settings import fingerprint_of_vision
from tokenmill.recipe import Recipe
from tokenmill.settings_generate import DrawingJob, QuestionJob

VERSION = 1


def draw_jobs(
    recipe: Recipe,
    jobs: Mapping[str, DrawingJob] | None = None,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    allow_work: bool = True,
    quiet: bool = False,
) -> dict[str, Snapshot]:
    """Bring jobs up to date (None: all of the recipe's), on one pool, and return what each has drawn, by name.

    Args:
        limit: only the first so many units of each.
        retry_failed: do units with failed rows again.
        allow_work: False only reads; units that are missing are an IncompleteStageError then.
    Raises:
        RecipeError: a table is not there, a model is no export or cannot draw. RunError: nothing was exported yet, a
            size is no multiple of what a code stands for, or units failed after all tries.
    """
    store = open_store(recipe.root, recipe.storage)
    works = {name: drawing_work(store, recipe, name, job) for name, job in (jobs or recipe.generate.jobs).items()}
    works = {name: replace(work, units=work.units[:limit]) for name, work in works.items()}
    cpus = cpus_of_worker(recipe.execution, STAGE)
    options = run_options(
        recipe.execution, STAGE, retry_failed=retry_failed, allow_work=allow_work, quiet=quiet
    )  # fmt: skip
    found = run_stage(STAGE, list(works.values()), replace(options, cores=cpus)) if works else []
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
    return draw_jobs(recipe, {name: jobs[name]}, allow_work=False, quiet=True)[name]


def drawing_work(store: Store, recipe: Recipe, name: str, job: DrawingJob) -> StageWork:
    """Describe a job: its units, and the folder that this model and these settings name."""
    where = f"generate.jobs.{name}"
    place = model_place(store, recipe, job, where)
    units = table_units(
        *table_place(job.prompts, recipe.storage, f"{where}.prompts"), job.prompt_field, job.unit_rows
    )  # fmt: skip
    folder = StageDir(store=store, source=name, config=job_config(STAGE, VERSION, SCHEMA, job, place))
    cpus = cpus_of_worker(recipe.execution, STAGE)
    return StageWork(
        title=f"{STAGE} {name}",
        folders=(folder,),
        units=units,
        make_worker=partial(DrawingWorker, name, job, place, cpus),
    )


def job_config(stage: str, version: int, schema: int, job: DrawingJob | QuestionJob, place: ModelPlace) -> StageConfig:
    """Return what names a job's folder."""
    description = place.export.description
    vision = dict(place.vision)
    return StageConfig(
        stage=stage,
        version=version,
        schema=schema,
        settings={"job": job.identity, "vocabulary": description["vocabulary"], "vision": vision},
        fingerprints={"model": place.export.fingerprint, "vision": fingerprint_of_vision(vision)},
        about={name: description[name] for name in ("run", "step") if name in description},
    )


def model_place(store: Store, recipe: Recipe, job: DrawingJob | QuestionJob, where: str) -> ModelPlace:
    """Find the model of a job without opening it.

    Raises:
        RecipeError: `model` is no exported folder, or it was trained without pictures. RunError: the recipe's run has
            exported nothing yet.
    """
    if job.model is None:
        export: ExportFolder = find_export(store, recipe.train.last.run)
    else:
        export = ExportFolder(open_store(job.model, recipe.storage if "://" in job.model else {}), "")
    try:
        described = export.description
    except (StorageError, ManifestError) as error:
        raise RecipeError(f"{where}.model: {job.model} holds no exported model (tokenmill.json)") from error
    vision = dict(described.get("vision") or {})
    if not vision or "vocabulary" not in described:
        raise RecipeError(f"{where}: {job.model or export.path} was trained without pictures; it cannot draw")
    vision.pop("device", None)
    return ModelPlace(export=export, vision=vision, device=job.device, dtype=job.dtype)


def jobs_rows(drawn: Mapping[str, Snapshot]) -> dict[str, dict[str, Any]]:
    """Return what jobs have done, by name: rows in, kept and failed, samples, and where they are."""
    return {name: _row(snapshot) for name, snapshot in drawn.items()}


def _row(snapshot: Snapshot) -> dict[str, Any]:
    counts = snapshot.counts.to_json()
    totals = {name: number for name, number in snapshot.totals.items() if number and name != "codes"}
    return {**counts, **totals, "folder": snapshot.folder.path, "snapshot": snapshot.digest}
