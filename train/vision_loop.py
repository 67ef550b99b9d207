"""The training of a tokenizer, on every rank: open the list, resume, take steps, measure, save, export."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tokenmill.faults import fault_point
from tokenmill.manifests.sample_list import read_list
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.job import TrainResult
from tokenmill.train.stopping import RENDEZVOUS_VARIABLE, StopRequest
from tokenmill.train.vision_data import Batches, StepData, steps_ahead
from tokenmill.train.vision_export import export_tokenizer
from tokenmill.train.vision_job import TokenizerJob
from tokenmill.train.vision_launch import figures, run_folder
from tokenmill.train.vision_log import TokenizerLog
from tokenmill.train.vision_measure import measure
from tokenmill.train.vision_model import build_model
from tokenmill.train.vision_run import TokenizerRun
from tokenmill.train.vision_samples import Place, Samples
from tokenmill.train.vision_saving import check_resumable, load, save
from tokenmill.train.world import TIMEOUT, world

log = logging.getLogger(__name__)
_SETTLING_STEPS = 32
_STARTING_PICTURES = 1200


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything the steps of a run share."""

    job: TokenizerJob
    folder: RunFolder
    samples: Samples
    batches: Batches
    run: TokenizerRun
    list_digest: str


def train_tokenizer(job: TokenizerJob, progress: Path | None = None) -> TrainResult:
    """Train a job to its end, or until asked to stop; resumes from the newest checkpoint by itself.

    `progress` is a file that gets this launch's rows of metrics, for whoever watches.
    """
    stop = StopRequest()
    device = _join(job)
    training = _start(job, device)
    try:
        _steps(training, stop, progress)
    finally:
        training.samples.close()
    step, total = training.run.step, job.settings.steps
    export = training.folder.at("export") if step >= total else None
    return TrainResult(step=step, total_steps=total, stopped=step < total, export=export)


def _join(job: TokenizerJob) -> torch.device:
    """Join the process group that the launcher described in the environment; returns this rank's device."""
    wanted = job.settings.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cpu")
    if wanted == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl",
        init_method=os.environ.get(RENDEZVOUS_VARIABLE, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=TIMEOUT,
    )
    return device


def _start(job: TokenizerJob, device: torch.device) -> Training:
    """Open the list and the samples, build the model, and take up the newest checkpoint."""
    settings, folder = job.settings, run_folder(job)
    rows, described = read_list(folder.store, folder.at("").rstrip("/"))
    steps = folder.steps()
    checkpoint = folder.read(steps[-1]) if steps else None
    if checkpoint is not None:
        check_resumable(checkpoint, settings, described.digest)
    samples = Samples(
        rows,
        Place(**job.root.model_dump()),
        {name: Place(**place.model_dump()) for name, place in job.places.items()},
        cache_bytes=settings.cache_mb << 20,
        max_pixels=settings.max_pixels,
        clip_timeout_s=settings.clip_timeout_s,
    )
    model = build_model(settings, None if checkpoint is None else checkpoint.model)
    run = TokenizerRun(settings, model, device)
    if checkpoint is not None:
        load(run, folder, checkpoint)
        log.info("goes on from step %d", run.step)
    batches = batches_of(samples, job, seed=settings.seed)
    return Training(
        job=job, folder=folder, samples=samples, batches=batches, run=run, list_digest=described.digest
    )  # fmt: skip


def batches_of(samples: Samples, job: TokenizerJob, *, seed: int) -> Batches:
    """Return what makes this rank's share of the steps."""
    rank, ranks = world()
    settings = job.settings
    return Batches(
        samples, settings.batches, seed=seed, rank=rank, ranks=ranks, shares=settings.sources,
        failure_budget=settings.failure_budget,
    )  # fmt: skip


def _steps(training: Training, stop: StopRequest, progress: Path | None) -> None:
    run, settings = training.run, training.job.settings
    records = TokenizerLog(training.folder, run.step, progress, tensorboard=settings.tensorboard)
    measured = dict(figures(training.folder).get("measured", {}))  # until there are newer ones
    data = steps_ahead(training.batches, run.step, settings.steps, threads=settings.decode_threads)
    try:
        while run.step < settings.steps:
            row, faults, stopping = _step(training, data, stop)
            if run.step == settings.steps or (settings.measure_every and run.step % settings.measure_every == 0):
                rank, ranks = world()
                measured = measure(run.average, training.samples, settings, rank=rank, ranks=ranks)
                row |= measured
            records.add(row, faults, settings.steps)
            if stopping or run.step == settings.steps or run.step % settings.checkpoint_every == 0:
                _publish(training, records, measured)
            if stopping:
                break
        if figures(training.folder).get("step") != run.step:  # killed between its last checkpoint and the export
            rank, ranks = world()
            _publish(training, records, measure(run.average, training.samples, settings, rank=rank, ranks=ranks))
    finally:
        data.close()
        records.close()


def _step(training: Training, data: Generator[StepData], stop: StopRequest) -> tuple[dict[str, Any], Any, bool]:
    """Take one step; returns its row, this rank's faults, and whether any rank was asked to stop."""
    run, started = training.run, time.perf_counter()
    if run.needs_pictures():
        rank, ranks = world()
        run.start_from(starting_pictures(training.samples, training.job.settings, rank=rank, ranks=ranks))
    if run.needs_codebook():
        settling = batches_of(training.samples, training.job, seed=training.job.settings.seed + 1)
        run.settle_codebook(settling(step).pixels_BTCHW for step in range(_SETTLING_STEPS))
    waiting = time.perf_counter()
    made = next(data)
    waited_s = time.perf_counter() - waiting
    fault_point(f"tokenizer:step-{run.step}")
    learned = run.advance(made.pixels_BTCHW)
    sums = torch.tensor([waited_s, len(made.faults), float(bool(stop))], dtype=torch.float64, device=run.device)
    dist.all_reduce(sums)
    seconds = time.perf_counter() - started
    kind = training.batches.kind(made.step)
    row = {
        "step": run.step,
        **learned,
        "crops": kind.crops,
        "side": kind.side,
        "frames": kind.frames,
        "unreadable": int(sums[1]),
        "data_wait_s": float(sums[0]) / world()[1],
        "seconds": seconds,
        "images_per_s": kind.crops * kind.frames / seconds,
    }
    return row, made.faults, bool(sums[2])


def starting_pictures(
    samples: Samples, settings: TokenizerTraining, *, rank: int = 0, ranks: int = 1
) -> Iterator[torch.Tensor]:
    """Yield a rank's share of batches of single pictures, none of a larger side, until there are enough."""
    only = settings.batches.model_copy(update={"windows": 0.0, "larger": {}})
    batches = Batches(
        samples, only, seed=settings.seed + 1, rank=rank, ranks=ranks, shares=settings.sources,
        failure_budget=settings.failure_budget,
    )  # fmt: skip
    for step in range(-(-_STARTING_PICTURES // only.pictures)):
        yield batches(step).pixels_BTCHW


def _publish(training: Training, records: TokenizerLog, measured: dict[str, float]) -> None:
    """Save and export where the run is."""
    run = training.run
    save(run, training.folder, training.list_digest)
    records.publish()
    if world()[0] == 0:
        about = {
            "run": training.job.settings.run,
            "step": run.step,
            "list": training.list_digest,
            "measured": measured,
            "settings": training.job.settings.model_dump(mode="json", by_alias=True),
        }
        export_tokenizer(training.folder, run.average, about)
    dist.barrier()
