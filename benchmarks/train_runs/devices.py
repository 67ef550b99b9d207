"""Speed, share of the peak and memory of models on this machine's GPUs, each in a run of its own.

The vocabulary has as many ids as Emu3's, 184,622, all but bytes of them codes, since no text tokenizer comes along.
MFU counts what the model asks for (`train/flops.py`): activations computed again are no work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_runs import packed
from benchmarks.train_runs.made_up import MadeUp
from tokenmill.errors import TokenmillError
from tokenmill.manifests.plans import Plan
from tokenmill.settings_model import ModelSettings
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.devices import device_of
from tokenmill.train.flops import ModelFlops
from tokenmill.train.model import described_config, weightless

EMU3_IDS = 184_622
CODEBOOK = EMU3_IDS - byte_vocabulary(1).size + 1
PICTURE_SIDE, TEXT_WORDS = 64, 150
STEP_IDS = 65_536  # on each rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to measure: every model at every context, on so many ranks; `said` is laid over the settings of each."""

    device: str
    models: tuple[str, ...]
    contexts: tuple[int, ...]
    steps: int
    warm_up_steps: int
    ranks: int
    peak_tflops: float | None
    said: Mapping[str, Any]
    codebook: int = CODEBOOK
    side: int = PICTURE_SIDE
    step_ids: int = STEP_IDS

    def settings(self, model: str, context: int) -> dict[str, Any]:
        """Give the settings of one run: packs of about 65,536 ids a rank and step, 16,384 at once."""
        packs = max(1, self.step_ids // context)
        return {
            "run": f"{model}-{context}",
            "device": self.device,
            "ranks": self.ranks,
            "precision": "bf16",
            "zero_stage": 1,
            "model": {"preset": model},
            "global_packs_per_step": packs * self.ranks,
            "micro_packs": max(1, min(packs, self.step_ids // 4 // context)),
            "activation_checkpointing": "device" if model != "100m" else "none",
            "steps": self.steps,
            "tensorboard": False,
            **self.said,
        }


def rows(sweep: Sweep, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each model and context; one that fails has an error in place of figures."""
    for context in sweep.contexts:
        made_up = _made_up(sweep, context)
        plan = made_up.write(folder / f"{context}")
        for model in sweep.models:
            settings = sweep.settings(model, context)
            named = {"model": model, "context": context, "settings": settings}
            try:
                found = packed.run(plan, settings, sweep.warm_up_steps)
            except TokenmillError as error:
                yield named | {"error": str(error)[-2000:]}
                continue
            found.pop("losses")
            speed = found["ids"] / found["seconds"]
            yield named | found | {"tokens_per_s": speed} | _share(sweep, settings, plan, made_up, found["seconds"])


def _made_up(sweep: Sweep, context: int) -> MadeUp:
    """Make up enough for all steps: a document has side² ids or fewer."""
    wanted = sweep.steps * sweep.ranks * max(sweep.step_ids, context)
    documents = 2 * wanted // (sweep.side * (sweep.side + 1)) + 10
    return MadeUp(documents=documents, side=sweep.side, words=TEXT_WORDS, context=context, codebook=sweep.codebook)


def _share(sweep: Sweep, settings: Mapping[str, Any], plan: Plan, made_up: MadeUp, seconds: float) -> dict[str, Any]:
    """Tell the model's size and the share of the peak that the measured steps have used."""
    checked = TrainSettings.model_validate(settings)
    flops, parameters = _model_flops(checked.model, made_up)
    packs = checked.global_packs_per_step
    costs = plan.costs(sweep.warm_up_steps * packs, min(sweep.steps * packs, plan.num_packs))
    done = flops.training(int(costs.tokens.sum()), int(costs.squares.sum()))
    peak = sweep.peak_tflops * 1e12 if sweep.peak_tflops else _peak(checked.precision)
    return {
        "parameters": parameters,
        "tflops_per_s": done / seconds / 1e12,
        "mfu": done / seconds / (peak * sweep.ranks) if peak else None,
    }


def _model_flops(settings: ModelSettings, made_up: MadeUp) -> tuple[ModelFlops, int]:
    model = weightless(described_config(settings, made_up.vocabulary, made_up.context))
    return ModelFlops.of(model.causal), sum(parameter.numel() for parameter in model.causal.parameters())


def _peak(precision: Any) -> float | None:
    found = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return found.peak_flops(precision) if found else None
