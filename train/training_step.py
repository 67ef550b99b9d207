"""One optimizer step on this rank: micro-batches forward and backward, what they measured summed over all ranks.

    loss of a step = Σ weight · cross-entropy over the global batch ÷ Σ weight from the plan

so it does not depend on how many ranks share the batch. DeepSpeed averages gradients over ranks; the factor `ranks`
undoes that. Everything that is random in a step is drawn from (seed, step, rank), so a resumed run repeats itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from tokenmill.manifests.identity import digest_of
from tokenmill.train.engine import gradient_norm, set_learning_rate
from tokenmill.train.metrics import peak_memory_gib
from tokenmill.train.model import Batch
from tokenmill.train.packs import PackArrays
from tokenmill.train.schedule import learning_rate
from tokenmill.train.steps import Step
from tokenmill.train.training_run import Run


def take_step(run: Run, step: Step, *, stopping: bool) -> tuple[dict[str, Any], bool]:
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


def speed_of(run: Run, step: Step, seconds: float) -> dict[str, Any]:
    """Tell tokens a second, memory and the share of the devices' peak that a step has used."""
    speed = {"tokens_per_s": step.num_tokens / seconds, "memory_gib": peak_memory_gib()}
    if run.peak_flops is not None:
        speed["mfu"] = run.flops.training(step.num_tokens, step.squares) / seconds / (run.ranks * run.peak_flops)
    return speed


def _by_modality(run: Run, arrays: PackArrays, losses: torch.Tensor) -> torch.Tensor:
    """Sum weighted loss and weight over ids of text and over ids of vision."""
    weights = torch.from_numpy(arrays.loss_weight).double()
    vision = torch.from_numpy(run.loader.vocabulary.vision_mask(arrays.labels)).double()
    weighted = weights * losses.detach().double().cpu()
    text = 1.0 - vision
    return torch.stack([weighted @ text, weights @ text, weighted @ vision, weights @ vision])
