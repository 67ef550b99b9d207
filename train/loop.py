"""The training loop: steps of a plan through a DeepSpeed engine, on every rank (training_step.py has one of them)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from tokenmill.errors import RunError
from tokenmill.train.checkpoints import Checkpoint
from tokenmill.train.continuing import check_begun
from tokenmill.train.export import export_checkpoint
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.model import Batch
from tokenmill.train.packs import filler_pack
from tokenmill.train.parameters import wake_optimizer
from tokenmill.train.preference import open_preference
from tokenmill.train.run_log import RunLog
from tokenmill.train.saving import restore, save
from tokenmill.train.steps import Step
from tokenmill.train.stopping import StopRequest
from tokenmill.train.training_run import Run, start
from tokenmill.train.training_step import speed_of, take_step

log = logging.getLogger(__name__)


def train(job: TrainJob, progress: Path | None = None) -> TrainResult:
    """Train a job to its end, or until asked to stop; resumes from the newest checkpoint by itself.

    `progress` is a file that gets this launch's rows of metrics, for whoever watches.
    """
    stop = StopRequest()
    run = start(job)
    if job.settings.preference is not None:
        preference = open_preference(run.engine, run.model, run.loader, run.folder, run.settings, run.packs, run.device,
                                     lambda: bool(stop))  # fmt: skip
        if preference is None:
            done = max(run.folder.steps(), default=run.first_step)
            return TrainResult(step=done, total_steps=run.total_steps, stopped=True, export=None)
        run = replace(run, preference=preference)
    done = resume(run)
    if done < run.total_steps:
        done = _steps(run, done, stop, progress)
    export = None
    if done >= run.total_steps:
        export = run.folder.at("export")
        if run.rank == 0:
            export_checkpoint(run.folder, done, run.loader.plan.description.get("areas"))
    dist.barrier()
    return TrainResult(step=done, total_steps=run.total_steps, stopped=done < run.total_steps, export=export)


def resume(run: Run) -> int:
    """Restore the newest checkpoint, if there is one, and return the number of steps done."""
    steps = run.folder.steps()
    if not steps:
        check_begun(run.loader.plan, run.settings.run)
        return run.first_step
    checkpoint = run.folder.read(steps[-1])
    done = run.first_step + run.loader.step_of(checkpoint.loader)
    wake_optimizer(run.engine, Batch.of(filler_pack(run.loader.vocabulary.pad), run.device), run.loader.micro_steps)
    restore(run.engine, run.model, run.folder, checkpoint)
    log.info("going on from step %d of %d", done, run.total_steps)
    return done


def _steps(run: Run, done: int, stop: StopRequest, progress: Path | None) -> int:
    """Run the steps from `done` on; returns how many are done when it ends."""
    run.engine.train()
    run_log = RunLog(run.folder, run.settings, done, progress)
    with closing(run_log), closing(_steps_ahead(run, done)) as steps:
        for step, waited_s in _timed(steps):
            started = time.perf_counter()
            row, stopping = take_step(run, step, stopping=bool(stop))
            if not math.isfinite(row["loss"]):
                raise RunError(
                    f"train: the loss of step {row['step']} is {row['loss']}; lower train.lr, or look at the data"
                )
            row |= {"data_wait_s": waited_s, "step_s": time.perf_counter() - started + waited_s}
            run_log.add(step, row | speed_of(run, step, row["step_s"]), run.total_steps)
            done = row["step"]
            if stopping or done == run.total_steps or done % run.settings.checkpoint_every == 0:
                save(run.engine, run.model, run.folder, _checkpoint(run, done), run.settings.keep)
                run_log.publish()
            if stopping:
                break
    return done


def _steps_ahead(run: Run, done: int) -> Generator[Step, None, None]:
    """Give the steps that are left of a run, from the loader, which counts from the plan's first."""
    return run.loader.steps(done - run.first_step, run.total_steps - run.first_step)


def _checkpoint(run: Run, done: int) -> Checkpoint:
    plan = run.loader.plan.description
    return Checkpoint(
        step=done,
        loader=run.loader.state(done - run.first_step).to_json(),
        model=run.model.causal.config.to_dict(),
        vocabulary=plan["vocabulary"],
        vision=plan["vision"],
        settings=run.settings.model_dump(mode="json"),
        tensors={},
        files=(),
    )


def _timed(steps: Iterator[Step]) -> Iterator[tuple[Step, float]]:
    """Pair each step with the seconds it was waited for."""
    while True:
        started = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - started
