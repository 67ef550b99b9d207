"""Training as a stage of a recipe: what the data side wrote is handed to the trainer.

They meet in files on disk; beside `commands`, only this file knows both.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RunError
from tokenmill.recipe import Recipe

log = logging.getLogger(__name__)


def train_model(recipe: Recipe, chain: Any) -> dict[str, Any]:
    """Train on the plans the recipe describes, which have to be there: one run, or one a phase, one after the other.

    A phase that is finished is left as it is, so a chain that was killed goes on where it stands. Raises RunError where
    a run was stopped.
    """
    from tokenmill.train.job import TrainJob
    from tokenmill.train.launch import launch

    runs = {}
    for name, settings in recipe.train.resolved().items():
        plan = chain.trained_plans[settings.phase].folder.path
        job = TrainJob(root=recipe.root, options=recipe.storage, plan=plan, settings=settings)
        title = f"train {name}" if recipe.train.phases else "train"
        result = launch(job, on_row=_TrainingLog(title))
        if result.stopped:
            told = f" of phase {name}" if recipe.train.phases else ""
            raise RunError(
                f"training stopped at step {result.step} of {result.total_steps}{told}; run it again to resume"
            )
        runs[name] = {"step": result.step, "total_steps": result.total_steps, "export": result.export}
    last = list(runs.values())[-1]
    return {**last, "phases": runs} if recipe.train.phases else last


def train_vision_tokenizer(recipe: Recipe, chain: Any) -> dict[str, Any]:
    """Write the list of what was kept, and train on it."""
    from tokenmill.pipelines.sample_list import places_of, sources_of_training, write_sample_list
    from tokenmill.train.vision_job import StorePlace, TokenizerJob
    from tokenmill.train.vision_launch import figures, is_begun, launch_tokenizer, run_folder

    assert recipe.tokenizer is not None
    settings = recipe.tokenizer
    places = places_of(chain, sources_of_training(chain, settings))
    root = StorePlace(url=chain.store.url, options=recipe.storage)
    given = {name: StorePlace(url=url, options=dict(options)) for name, (url, options) in places.items()}
    job = TokenizerJob(root=root, places=given, settings=settings)
    folder = run_folder(job)
    listed = write_sample_list(chain, settings, folder.at("").rstrip("/"), is_begun=is_begun(folder))
    shown = ("loss", "psnr_db", "usage", "images_per_s", "eta_s")
    result = launch_tokenizer(job, on_row=_TrainingLog("train-tokenizer", shown))
    if result.stopped:
        raise RunError(f"training stopped at step {result.step} of {result.total_steps}; run it again to resume")
    measured = figures(folder).get("measured", {})
    samples = {"samples": sum(listed.samples.values()), "held_out": sum(listed.held_out.values())}
    return {**samples, "step": result.step, "total_steps": result.total_steps, **measured, "export": result.export}


class _TrainingLog:
    """Tells how training goes, every thirty seconds."""

    def __init__(self, title: str = "train", shown: tuple[str, ...] = ("loss", "tokens_per_s", "eta_s")) -> None:
        self._told = time.monotonic()
        self._title, self._shown = title, shown

    def __call__(self, row: Mapping[str, Any]) -> None:
        if time.monotonic() - self._told < 30:
            return
        self._told = time.monotonic()
        figures = "  ".join(f"{key} {row[key]:.4g}" for key in self._shown if isinstance(row.get(key), float))
        log.info("%s: step %s  %s", self._title, row.get("step"), figures)
