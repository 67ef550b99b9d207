"""The training loop: steps of a plan through a DeepSpeed engine, on every rank.

    loss of a step = Σ weight · cross-entropy over the global batch ÷ Σ weight from the plan

so it does not depend on how many ranks share the batch. DeepSpeed averages gradients over ranks; the factor `ranks`
undoes that. Everything that is random in a step is drawn from (seed, step, rank), so a resumed run repeats itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tokenmill.errors import RunError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.plan_border import first_step
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.vocabulary import build_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder
from tokenmill.train.continuing import check_begun
from tokenmill.train.engine import (
    gradient_norm,
    set_learning_rate,
    start_distributed,
    start_engine,
)
from tokenmill.train.export import export_checkpoint
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.loader import PlanLoader, Step
from tokenmill.train.loading import loading
from tokenmill.train.metrics import peak_memory_gib, training_flops
from tokenmill.train.model import Batch, PackedModel, build_model
from tokenmill.train.packs import PackArrays, filler_pack
from tokenmill.train.parameters import wake_optimizer
from tokenmill.train.run_log import RunLog
from tokenmill.train.saving import restore, save
from tokenmill.train.schedule import learning_rate, total_steps
from tokenmill.train.stopping import StopRequest
from tokenmill.train.world import world

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the steps of a run share.

    `first_step` is the one at which the plan takes over from the one before: the loader's steps count from there.
    """

    settings: TrainSettings
    folder: RunFolder
    loader: PlanLoader
    model: PackedModel
    engine: Any
    device: torch.device
    rank: int
    ranks: int
    total_steps: int
    first_step: int = 0


def train(job: TrainJob, progress: Path | None = None) -> TrainResult:
    """Train a job to its end, or until asked to stop; resumes from the newest checkpoint by itself.

    `progress` is a file that gets this launch's rows of metrics, for whoever watches.
    """
    stop = StopRequest()
    run = start(job)
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


def start(job: TrainJob) -> Run:
    """Open the plan, build loader, model and engine."""
    settings = job.settings
    device = start_distributed(settings)
    rank, ranks = world()
    store = open_store(job.root, job.options)
    plan = open_plan(store, job.plan)
    vocabulary = build_vocabulary(plan.description["vocabulary"])
    model = build_model(
        settings.model,
        vocabulary,
        plan.context,
        loss_chunk_tokens=settings.loss_chunk_tokens,
        checkpointing=settings.activation_checkpointing,
        seed=settings.seed,
    )
    loader = PlanLoader(
        plan,
        vocabulary,
        global_packs=settings.global_packs_per_step,
        rank=rank,
        world=ranks,
        micro_packs=settings.micro_packs,
        attention_share=model.attention_share,
        **loading(plan, settings.loader),
    )
    return Run(
        settings=settings,
        folder=RunFolder(store, settings.run),
        loader=loader,
        model=model,
        engine=start_engine(model, settings, loader.micro_steps),
        device=device,
        rank=rank,
        ranks=ranks,
        total_steps=total_steps(settings, plan.num_packs, first_step(plan.description)),
        first_step=first_step(plan.description),
    )


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
            row, stopping = _step(run, step, stopping=bool(stop))
            if not math.isfinite(row["loss"]):
                raise RunError(
                    f"train: the loss of step {row['step']} is {row['loss']}; lower train.lr, or look at the data"
                )
            row |= {"data_wait_s": waited_s, "step_s": time.perf_counter() - started + waited_s}
            run_log.add(step, row | _speed(run, step, row["step_s"]), run.total_steps)
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


def _step(run: Run, step: Step, *, stopping: bool) -> tuple[dict[str, Any], bool]:
    """Take one optimizer step; returns its metrics, and whether any rank wants to stop."""
    number_in_run = run.first_step + step.number
    lr = learning_rate(number_in_run, run.total_steps, run.settings)
    set_learning_rate(run.engine, lr)
    torch.manual_seed(int(digest_of([run.settings.seed, number_in_run, run.rank])[:15], 16))
    sums = torch.zeros(6, dtype=torch.float64)  # loss and weight of text, loss and weight of vision, stop, faults
    norm = None
    for number, arrays in enumerate(step.micro_batches):
        total, losses = run.engine(Batch.of(arrays, run.device))
        run.engine.backward(total * (run.ranks / max(step.weight, 1e-9)), scale_wrt_gas=False)
        if run.settings.zero_stage == 0 and number == len(step.micro_batches) - 1:
            norm = gradient_norm(run.engine, run.settings)
        run.engine.step()
        sums[:4] += _by_modality(run, arrays, losses)
    sums[4], sums[5] = float(stopping), float(len(step.faults))
    summed = sums.to(run.device)
    dist.all_reduce(summed)
    text, text_weight, vision, vision_weight, stops, faults = summed.tolist()
    row = {
        "step": number_in_run + 1,
        "epoch": step.epoch,
        "loss": (text + vision) / max(step.weight, 1e-9),
        "loss_text": text / text_weight if text_weight else None,
        "loss_vision": vision / vision_weight if vision_weight else None,
        "lr": lr,
        "grad_norm": norm if run.settings.zero_stage == 0 else gradient_norm(run.engine, run.settings),
        "weight": step.weight,
        "tokens": step.num_tokens,
        "unreadable": int(faults),
    }
    return row, stops > 0


def _by_modality(run: Run, arrays: PackArrays, losses: torch.Tensor) -> torch.Tensor:
    """Sum weighted loss and weight over ids of text and over ids of vision."""
    weights = torch.from_numpy(arrays.loss_weight).double()
    vision = torch.from_numpy(run.loader.vocabulary.vision_mask(arrays.labels)).double()
    weighted = weights * losses.detach().double().cpu()
    text = 1.0 - vision
    return torch.stack([weighted @ text, weights @ text, weighted @ vision, weights @ vision])


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


def _speed(run: Run, step: Step, seconds: float) -> dict[str, Any]:
    speed = {"tokens_per_s": step.num_tokens / seconds, "memory_gib": peak_memory_gib()}
    if run.settings.peak_tflops:
        config = run.model.causal.config
        flops = training_flops(run.model.num_matmul_parameters, config.num_hidden_layers, config.hidden_size,
                               step.num_tokens, step.squares)  # fmt: skip
        speed["mfu"] = flops / seconds / (run.ranks * run.settings.peak_tflops * 1e12)
    return speed
