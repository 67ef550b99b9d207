"""Starting the training of a tokenizer and waiting for it: what the command line calls; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.sample_list import read_list_description
from tokenmill.manifests.storage import Store, open_store
from tokenmill.settings_tokenizer import TokenizerStart, TokenizerTraining
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.job import TrainResult
from tokenmill.train.ranks import OnRow, RankGroup, run_ranks
from tokenmill.train.vision_job import TokenizerJob

EXPORT, FIGURES = "export", "training.json"


def run_folder(job: TokenizerJob) -> RunFolder:
    """Return where a run lies."""
    return RunFolder(open_store(job.root.url, job.root.options), job.settings.folder)


def is_begun(folder: RunFolder) -> bool:
    """Say whether a run has a checkpoint."""
    return bool(folder.steps())


def check_files(settings: TokenizerTraining, store: Store) -> None:
    """Raise RecipeError where a file that the ranks will open is not there, before hours of other stages."""
    named = {}
    if settings.losses.perceptual.weight > 0:
        named["losses.perceptual.weights"] = settings.losses.perceptual.weights
    if isinstance(settings.start, TokenizerStart) and not is_begun(RunFolder(store, settings.folder)):
        named["start.from"] = settings.start.path
    for key, path in named.items():
        if not Path(path).expanduser().exists():
            raise RecipeError(f"tokenizer.{key}: {path}: nothing is there")


def figures(folder: RunFolder) -> dict[str, Any]:
    """Return what the exported tokenizer is: step, figures, settings; empty where none is."""
    name = folder.at(f"{EXPORT}/{FIGURES}")
    found: dict[str, Any] = json.loads(folder.store.read_bytes(name)) if folder.store.exists(name) else {}
    return found


def launch_tokenizer(job: TokenizerJob, on_row: OnRow | None = None) -> TrainResult:
    """Train on `settings.ranks` processes of this machine, resuming; returns how it ended.

    A run that is finished and exported is left as it is, without starting any rank. Raises RecipeError where the run
    was begun with other samples or weights, RunError with the ranks' own message, or the end of their log.
    """
    folder = run_folder(job)
    if _is_finished(folder, job):
        steps = job.settings.steps
        return TrainResult(step=steps, total_steps=steps, stopped=False, export=folder.at(EXPORT))
    group = RankGroup(
        module="tokenmill.train.vision_worker",
        job=job.model_dump_json(by_alias=True),
        folder=folder,
        ranks=job.settings.ranks,
        threads_per_rank=job.settings.threads_per_rank,
        device=job.settings.device,
        title="train-tokenizer",
    )
    return TrainResult.from_json(run_ranks(group, on_row))


def _is_finished(folder: RunFolder, job: TokenizerJob) -> bool:
    """Say whether nothing is left to do: same list and settings that matter, all steps, exported."""
    exported = figures(folder)
    described = read_list_description(folder.store, folder.at("").rstrip("/"))
    if not exported or described is None or exported["list"] != described.digest:
        return False
    wanted = job.settings.model_dump(mode="json", by_alias=True)
    return exported["step"] == job.settings.steps and _trained(exported["settings"]) == _trained(wanted)


def _trained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what shapes the weights."""
    how = ("ranks", "threads_per_rank", "decode_threads", "device", "cache_mb", "keep", "checkpoint_every",
           "measure_every", "measure_samples", "measure_area", "tensorboard", "clip_timeout_s",
           "failure_budget")  # fmt: skip
    return {name: value for name, value in settings.items() if name not in how}
