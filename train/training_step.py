"""One optimizer step on this rank: micro-batches forward and backward, what they measured summed over all ranks.

    loss of a step = Σ weight · cross-entropy over the global batch ÷ Σ weight from the plan

so it does not depend on how many ranks share the batch. DeepSpeed averages gradients over ranks; the factor `ranks`
undoes that. Everything that is random in a step is drawn from (seed, step, rank), so a resumed run repeats itself.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenmill.manifests.identity import digest_of
from tokenmill.train.engine import gradient_norm, set_learning_rate
from tokenmill.train.metrics import peak_memory_gib, training_flops
from tokenmill.train.model import Batch
from tokenmill.train.schedule import learning_rate
from tokenmill.train.steps import Step
from tokenmill.train.tally import Tally, losses_of
from tokenmill.train.training_run import Run


def take_step(run: Run, step: Step, *, stopping: bool) -> tuple[dict[str, Any], bool]:
    """Take one optimizer step; returns its metrics, and whether any rank wants to stop."""
    number_in_run = run.first_step + step.number
    lr = learning_rate(number_in_run, run.total_steps, run.settings)
    set_learning_rate(run.engine, lr)
    torch.manual_seed(int(digest_of([run.settings.seed, number_in_run, run.rank])[:15], 16))
    tally = Tally(run.loader.vocabulary)
    norm = None
    for number, arrays in enumerate(step.micro_batches):
        total, losses = run.engine(Batch.of(arrays, run.device))
        run.engine.backward(total * (run.ranks / max(step.weight, 1e-9)), scale_wrt_gas=False)
        if run.settings.zero_stage == 0 and number == len(step.micro_batches) - 1:
            norm = gradient_norm(run.engine, run.settings)
        run.engine.step()
        tally.add(arrays, step.documents.templates[number], losses, total)
    sums, penalty, (stops, faults) = tally.over_ranks(run.device, float(stopping), len(step.faults))
    row = {
        "step": number_in_run + 1,
        "epoch": step.epoch,
        **losses_of(sums, step.weight, step.documents.weight),
        **({"z_loss": penalty / max(step.weight, 1e-9)} if run.settings.z_loss else {}),
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
    if run.settings.peak_tflops:
        config = run.model.causal.config
        flops = training_flops(run.model.num_matmul_parameters, config.num_hidden_layers, config.hidden_size,
                               step.num_tokens, step.squares)  # fmt: skip
        speed["mfu"] = flops / seconds / (run.ranks * run.settings.peak_tflops * 1e12)
    return speed
