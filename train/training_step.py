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
from tokenmill.train.metrics import peak_memory_gib, training_flops
from tokenmill.train.model import Batch
from tokenmill.train.packs import PackArrays
from tokenmill.train.preference_loss import PairMeasures
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
    paired = run.preference and run.preference.of(step, run.loader.packs_of(step.number))
    step = paired.step if paired else step
    pair_sums = torch.zeros(len(PairMeasures._fields), dtype=torch.float64)
    for number, arrays in enumerate(step.micro_batches):
        batch = Batch.of(arrays, run.device)
        batch = paired.batch(number, batch) if paired else batch
        total, losses = run.engine(batch)
        weight = 1.0 if paired else max(step.weight, 1e-9)
        run.engine.backward(total * (run.ranks / weight), scale_wrt_gas=False)
        pair_sums += paired.measured(batch, losses) if paired else 0.0
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
    if paired:
        row |= paired.row(_over_ranks(pair_sums, run.device), row["loss"])
    return row, stops > 0


def _over_ranks(sums: torch.Tensor, device: torch.device) -> torch.Tensor:
    summed = sums.to(device)
    dist.all_reduce(summed)
    return summed.cpu()


def speed_of(run: Run, step: Step, seconds: float) -> dict[str, Any]:
    """Tell tokens a second, memory and the share of the devices' peak that a step has used."""
    speed = {"tokens_per_s": step.num_tokens / seconds, "memory_gib": peak_memory_gib()}
    if run.settings.peak_tflops:
        config = run.model.causal.config
        flops = training_flops(run.model.num_matmul_parameters, config.num_hidden_layers, config.hidden_size,
                               step.num_tokens, step.squares)  # fmt: skip
        speed["mfu"] = flops / seconds / (run.ranks * run.settings.peak_tflops * 1e12)
    return speed


def _by_modality(run: Run, arrays: PackArrays, losses: torch.Tensor) -> torch.Tensor:
    """Sum weighted loss and weight over ids of text and over ids of vision."""
    weights = torch.from_numpy(arrays.loss_weight).double()
    vision = torch.from_numpy(run.loader.vocabulary.vision_mask(arrays.labels)).double()
    weighted = weights * losses.detach().double().cpu()
    text = 1.0 - vision
    return torch.stack([weighted @ text, weights @ text, weighted @ vision, weights @ vision])
