"""Training as a stage of a recipe: what the data side wrote is handed to the trainer.

They meet in files on disk; beside `commands`, only this file knows both.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.errors import StoppedError
from tokenmill.recipe import Recipe

if TYPE_CHECKING:
    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.progress import StepSums


def train_model(recipe: Recipe, chain: Any) -> dict[str, Any]:
    """Train on the plans the recipe describes, which have to be there: one run, or one a phase, one after the other.

    A phase that is finished is left as it is, so a chain that was killed goes on where it stands. Raises StoppedError
    where a run was stopped.
    """
    runs = {name: _train_phase(name, settings, recipe, chain) for name, settings in recipe.train.resolved().items()}
    last = list(runs.values())[-1]
    return {**last, "phases": runs} if recipe.train.phases else last


def _train_phase(name: str, settings: TrainSettings, recipe: Recipe, chain: Any) -> dict[str, Any]:
    from tokenmill.manifests.plan_border import first_step
    from tokenmill.train.job import TrainJob
    from tokenmill.train.launch import launch
    from tokenmill.train.progress import TrainingProgress, tell_steps
    from tokenmill.train.schedule import total_steps

    plan = chain.plan_of(settings.phase)
    total = total_steps(settings, plan.num_packs, first_step(plan.description))
    asked = settings.evaluation
    held_out = chain.plan_of(asked.phase).folder.path if asked else None
    job = TrainJob(
        root=recipe.root, options=recipe.storage, plan=plan.folder.path, evaluation_plan=held_out, settings=settings
    )
    title, told = (f"train {name}", f" of phase {name}") if recipe.train.phases else ("train", "")
    with closing(TrainingProgress(title, total, tell_steps, quiet=chain.options.quiet)) as progress:
        result = launch(job, on_row=progress)
    if result.stopped:
        where = f"step {result.step} of {result.total_steps}{told}"
        raise StoppedError(f"stopped at {where}, and saved; run it again to resume")
    return {
        "step": result.step,
        "total_steps": result.total_steps,
        "export": result.export,
        **progress.launch.to_json(),
    }


def train_on_hosts(options: argparse.Namespace) -> int:
    """Give the command that was asked for to every machine of a hostfile."""
    from tokenmill.train.hostfile import read_hostfile
    from tokenmill.train.hosts import run_on_hosts

    hosts = read_hostfile(options.hostfile)
    ranks = [f"train.ranks={hosts.ranks}"] if hosts.ranks else []
    flags = [flag for flag, is_set in (("--json", options.json), ("--debug", options.debug)) if is_set]
    command = [sys.executable, "-m", "tokenmill.cli", "train", str(Path(options.recipe).absolute())]
    run_on_hosts(hosts, [*command, *flags, *options.overrides, *ranks])
    return 0


def train_vision_tokenizer(recipe: Recipe, chain: Any) -> dict[str, Any]:
    """Write the list of what was kept, and train on it."""
    from tokenmill.pipelines.sample_list import places_of, sources_of_training, write_sample_list
    from tokenmill.train.progress import TrainingProgress
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
    with closing(TrainingProgress("train-tokenizer", None, _vision_figures, quiet=chain.options.quiet)) as progress:
        result = launch_tokenizer(job, on_row=progress)
    if result.stopped:
        raise StoppedError(f"stopped at step {result.step} of {result.total_steps}, and saved; run it again to resume")
    measured = figures(folder).get("measured", {})
    samples = {"samples": sum(listed.samples.values()), "held_out": sum(listed.held_out.values())}
    return {**samples, "step": result.step, "total_steps": result.total_steps, **measured, "export": result.export}


def _vision_figures(steps: StepSums) -> str:
    shown = ("loss", "psnr_db", "usage", "images_per_s", "eta_s")
    return "  ".join(f"{key} {steps.last[key]:.4g}" for key in shown if isinstance(steps.last.get(key), float))
