"""The training loop of a vision tokenizer: one object of state, a step, and checkpoints that resume exactly.

A batch is a function of the step, a generator of seed and step: the checkpoint holds tensors and one integer, and a run
killed at any point ends with the weights of an uninterrupted one, bit for bit (on one thread).
"""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenmill.train.vision_codebook import Codebook, perplexity
from tokenmill.train.vision_data import Pool, batch
from tokenmill.train.vision_measure import measure
from tokenmill.train.vision_objective import reconstruct
from tokenmill.train.vision_recipe import Shape, VisionRecipe
from tokenmill.train.vision_start import start_as_linear

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"
RECIPE = "recipe.json"


def build_model(shape: Shape, *, seed: int) -> Any:
    """A trainable Emu3VQVAE with our start weights; its batch norms stay in eval mode, where they are the identity."""
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(seed)
    model = Emu3VQVAE(Emu3VQVAEConfig(**shape.model_dump()))
    start_as_linear(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.quantize.embedding.weight.requires_grad_(False)
    return model


def learning_rate(recipe: VisionRecipe, step: int) -> float:
    """Climb, stay, fall linearly to zero: the end can be moved while the rate still stays."""
    fall = max(1.0, recipe.fall_share * recipe.steps)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.rise_steps, (recipe.steps - step) / fall)


class VisionRun:
    """A run at a step: weights in training, their average, optimizer and codebook."""

    def __init__(self, recipe: VisionRecipe, pool: Pool) -> None:
        self.recipe, self.pool, self.step = recipe, pool, 0
        self.model = build_model(recipe.shape, seed=recipe.seed)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.codebook = Codebook.of(self.model.quantize.embedding.weight)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)

    def advance(self) -> dict[str, float]:
        """Take one step; returns what to log."""
        recipe, step = self.recipe, self.step
        if step == recipe.warm_up_steps:
            self.codebook.settle(self._some_latents(), generator=self._generator())
        quantized = step >= recipe.warm_up_steps
        pixels = batch(self.pool, recipe.batches, seed=recipe.seed, step=step)
        made = reconstruct(
            self.model, pixels, commitment=recipe.commitment, quantized=quantized, bfloat16=recipe.decoder_bfloat16
        )
        self._descend(made.loss)
        row = {"loss": made.loss.item(), "l2": made.l2.item(), "frames": pixels.shape[1]}
        if made.codes_N is not None:
            row |= self._learn_codes(made.latents_ND, made.codes_N)
        self._average()
        self.step += 1
        return row

    def _descend(self, loss: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.recipe.clip_norm)
        self.optimizer.step()

    def _learn_codes(self, latents_ND: torch.Tensor, codes_N: torch.Tensor) -> dict[str, float]:
        recipe = self.recipe
        self.codebook.follow(latents_ND, codes_N, decay=recipe.codebook_decay)
        row = {"perplexity": perplexity(codes_N, recipe.shape.codebook_size)}
        falling = self.step >= recipe.steps * (1 - recipe.fall_share / 2)
        if self.step % recipe.revive_every == 0 and not falling:
            row["revived"] = self.codebook.revive(latents_ND, below=recipe.revive_below, generator=self._generator())
        return row

    @torch.no_grad()
    def _average(self) -> None:
        """Average the weights; the first steps count less, so that the start is soon forgotten."""
        decay = min(self.recipe.average_decay, self.step / (self.step + 10))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        if self.step == self.recipe.warm_up_steps:
            self.average.quantize.embedding.weight.copy_(self.model.quantize.embedding.weight)

    @torch.no_grad()
    def _some_latents(self) -> torch.Tensor:
        """Latents of 32 batches, for k-means."""
        seed, settings = self.recipe.seed + 1, self.recipe.batches
        batches = (batch(self.pool, settings, seed=seed, step=step) for step in range(32))
        return torch.cat([reconstruct(self.model, x, commitment=0, quantized=False).latents_ND for x in batches])

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "uses_V": self.codebook.uses_V,
            "sums_VD": self.codebook.sums_VD,
        }
        temporary = folder / f"{CHECKPOINT}.part"
        with temporary.open("wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
        temporary.replace(folder / CHECKPOINT)

    def load(self, folder: Path) -> bool:
        """Take up the folder's checkpoint; False if it has none."""
        path = folder / CHECKPOINT
        if not path.exists():
            return False
        state: Mapping[str, Any] = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.codebook.uses_V.copy_(state["uses_V"])
        self.codebook.sums_VD.copy_(state["sums_VD"])
        return True


def train(run: VisionRun, folder: Path, *, until: int | None = None) -> None:
    """Run to the recipe's last step (or `until`), saving and logging to `folder`; resumes what lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(run.recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if run.load(folder):
        log.info("resumed at step %d", run.step)
    recipe, saved = run.recipe, time.monotonic()
    last = min(recipe.steps, until or recipe.steps)
    since, rows = time.monotonic(), []
    stop = _stopped_by_signal()
    while run.step < last and not stop.is_set():
        rows.append(run.advance())
        if run.step % 50 == 0 or run.step == last:
            _log(folder, _mean(rows) | {"step": run.step, "seconds_per_step": (time.monotonic() - since) / len(rows)})
            since, rows = time.monotonic(), []
        if recipe.measure_every and (run.step % recipe.measure_every == 0 or run.step == last):
            _log(folder, {"step": run.step, "unix_s": int(time.time()), **measure(run.average)})
            since = time.monotonic()
        if time.monotonic() - saved > recipe.save_every_s or run.step == last:
            run.save(folder)
            saved = time.monotonic()
    if stop.is_set():
        run.save(folder)
        log.info("stopped and saved at step %d", run.step)


def _stopped_by_signal() -> threading.Event:
    """An event that SIGTERM sets, so that a run told to stop saves first."""
    event = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: event.set())
    return event


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: round(sum(values) / len(values), 5) for name, values in columns.items()}


def _log(folder: Path, row: Mapping[str, float]) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
