"""Stage answer: each table of questions of the recipe (`generate.questions`) is a stage of its own, as drawings are.

A unit is a range of rows. Its identity are the rows, not the pictures they name; whose bytes were seen stands in each
row of the result (`media_sha256`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.drawing_jobs import JobOptions, run_jobs
from tokenmill.pipelines.drawn import STAGE as POOL
from tokenmill.pipelines.job_model import model_place
from tokenmill.pipelines.job_tables import table_place, table_units
from tokenmill.pipelines.jobs import StageWork
from tokenmill.pipelines.question_worker import ANSWER_COLUMNS, STAGE, QuestionWorker
from tokenmill.pipelines.recipe_sections import cpus_of_worker, decode_limits
from tokenmill.recipe import Recipe
from tokenmill.settings_generate import QuestionJob

VERSION = 1
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A row of a table of questions, as it was given, with the model's answer as text and as ids."""

    number: int
    prompt_key: str
    row: Mapping[str, Any]
    question: str
    answer: str
    ids: NDArray[np.int32]
    finish_reason: str


def answer_jobs(
    recipe: Recipe, jobs: Mapping[str, QuestionJob] | None = None, options: JobOptions | None = None
) -> dict[str, Snapshot]:
    """Bring tables of questions up to date (None: all of the recipe's) and return what each has, by name.

    Raises:
        RecipeError: a table is not there, a model is no export or cannot see. RunError: nothing was exported yet, or
            units failed after all tries.
    """
    store = open_store(recipe.root, recipe.storage)
    asked = recipe.generate.questions if jobs is None else jobs
    works = {name: question_work(store, recipe, name, job) for name, job in asked.items()}
    return run_jobs(recipe, STAGE, works, options or JobOptions())


def question_work(store: Store, recipe: Recipe, name: str, job: QuestionJob) -> StageWork:
    """Describe a table of questions: its units, and the folder that this model and these settings name."""
    where = f"generate.questions.{name}"
    place = model_place(store, recipe, job, where)
    table = table_place(job.questions, recipe.storage, f"{where}.questions")
    media = table[0] if job.media is None else open_store(job.media, recipe.storage if "://" in job.media else {})
    limits = decode_limits(recipe.execution)
    config = place.config(STAGE, VERSION, SCHEMA, {**job.identity, **limits.settings})
    return StageWork(
        title=f"{STAGE} {name}",
        folders=(StageDir(store=store, source=name, config=config),),
        units=table_units(*table, job.question_field, job.unit_rows),
        make_worker=partial(QuestionWorker, job, place, media, limits, cpus_of_worker(recipe.execution, POOL)),
    )


def answered_rows(snapshot: Snapshot) -> Iterator[Answered]:
    """Yield every answer in the order of its table; rows that could not be asked have none."""
    for commit in snapshot.commits:
        rows = snapshot.folder.read_rows(commit, list(ANSWER_COLUMNS)).filter(pl.col("fail_reason").is_null())
        for row, ids in zip(rows.drop("ids").iter_rows(named=True), rows["ids"], strict=True):
            yield Answered(
                number=row["number"],
                prompt_key=row["prompt_key"],
                row=json.loads(row["metadata"]),
                question=row["question"],
                answer=row["answer"],
                ids=ids.to_numpy(),
                finish_reason=row["finish_reason"],
            )
