"""One optimizer step on this rank: micro-batches forward and backward, what they measured summed over all ranks.

    loss of a step = Σ weight · cross-entropy over the global batch ÷ Σ weight from the plan

so it does not depend on how many ranks share the batch, nor on how many share a pack: each id is on one rank alone, and
exchanges between ranks carry gradients back. DeepSpeed averages gradients over ranks; the factor `ranks` undoes that.
Everything that is random in a step is drawn from (seed, step, rank), so a resumed run repeats itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tokenmill.manifests.identity import digest_of
from tokenmill.train.engine import discarding, gradient_norm, has_discarded, set_learning_rate
from tokenmill.train.guard import Verdict
from tokenmill.train.metrics import peak_memory_gib
from tokenmill.train.model import Batch
from tokenmill.train.schedule import learning_rate
from tokenmill.train.sequence_parallel import part_of
from tokenmill.train.steps import Step
from tokenmill.train.tally import Tally, losses_of
from tokenmill.train.training_run import Run


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a step: its metrics, whether any rank wants to stop, whether all have written a checkpoint.

    `refused` says why its gradients were dropped, if they were.
    """

    row: dict[str, Any]
    stopping: bool
    written: bool
    refused: Verdict | None


def take_step(run: Run, step: Step, *, stopping: bool, written: bool = False) -> Taken:
    """Take one optimizer step, unless the guard refuses it."""
    number_in_run = run.first_step + step.number
    lr = learning_rate(number_in_run, run.total_steps, run.settings)
    set_learning_rate(run.engine, lr)
    torch.manual_seed(int(digest_of([run.settings.seed, number_in_run, run.rank])[:15], 16))
    paired = run.preference and run.preference.of(step, run.loader.packs_of(step.number))
    step = paired.step if paired else step
    tally = Tally(run.loader.vocabulary)
    for number, whole in enumerate(step.micro_batches):
        if number:
            run.engine.step()
        arrays = part_of(whole, run.sequence, run.loader.vocabulary.pad)
        batch = Batch.of(arrays, run.device, run.sequence)
        batch = paired.batch(number, batch) if paired else batch
        total, losses = run.engine(batch)
        run.engine.backward(total * (run.ranks / max(step.weight, 1e-9)), scale_wrt_gas=False)
        first_id = run.sequence.rank * len(arrays.labels)
        tally.add(arrays, step.documents.templates[number], losses, total, first_id)
        if paired:
            paired.add(batch, losses)
    faults_here = len(step.faults) if run.sequence.is_first else 0
    told = (float(stopping), float(faults_here), float(written))
    sums, penalty, (stops, faults, writers) = tally.over_ranks(run.device, *told)
    found = losses_of(sums, step.weight, step.documents.weight)
    found |= paired.row(found["loss"], run.device) if paired else {}
    norm, refused = _finish(run, found["loss"])
    row = {
        "step": number_in_run + 1,
        "epoch": step.epoch,
        **found,
        **({"z_loss": penalty / max(step.weight, 1e-9)} if run.settings.z_loss else {}),
        "lr": lr,
        "grad_norm": norm,
        "weight": step.weight,
        "tokens": step.num_tokens,
        "unreadable": int(faults),
    }
    return Taken(row, stops > 0, writers == run.ranks, refused)


def _finish(run: Run, loss: float) -> tuple[float | None, Verdict | None]:
    """Step the optimizer with the gradients that are there, or drop them; returns their norm, and why not."""
    is_plain = run.settings.zero_stage == 0
    norm = gradient_norm(run.engine, run.settings) if is_plain else None
    refused = run.guard.judge(loss, norm)
    with discarding(run.engine) if refused else nullcontext():
        run.engine.step()
    if refused:
        return norm, refused
    if not is_plain:
        norm = gradient_norm(run.engine, run.settings)
    return norm, run.guard.judge_gradient(norm) if has_discarded(run.engine) else None


def speed_of(run: Run, step: Step, seconds: float) -> dict[str, Any]:
    """Tell tokens a second, memory and the share of the devices' peak that a step has used."""
    speed = {"tokens_per_s": step.num_tokens / seconds, "memory_gib": peak_memory_gib()}
    if run.peak_flops is not None:
        speed["mfu"] = run.flops.training(step.num_tokens, step.squares) / seconds / (run.ranks * run.peak_flops)
    return speed
