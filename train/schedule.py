"""Learning rate by step: warm-up, then cosine or linear to the end; a pure function, so resuming needs no state."""

from __future__ import annotations

import math

from tokenmill.settings_train import TrainSettings


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Give the rate for the step with this number (from 0) of `total`."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    remaining = 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.lr * (settings.min_lr_share + (1.0 - settings.min_lr_share) * remaining)


def steps_per_epoch(num_packs: int, global_packs: int) -> int:
    """Give the steps that go once through a plan; the last may have fewer packs."""
    return -(-num_packs // global_packs)


def total_steps(settings: TrainSettings, num_packs: int, first_step: int = 0) -> int:
    """Give the number of steps of the whole run; `first_step` of them were done with the plans before."""
    per_epoch = steps_per_epoch(num_packs, settings.global_packs_per_step)
    return settings.steps or first_step + max(1, math.ceil(settings.epochs * per_epoch))
