"""A tokenizer's training at a step: weights, their average, optimizers, codebook; and what a step does to them.

Nothing here is random but what hangs on (seed, step), so a checkpoint holds tensors and one integer, and a run killed
at any point ends with the weights of an uninterrupted one, bit for bit on as many ranks and threads. Ranks hold the
same weights: gradients are averaged, as the codebook's sums are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from tokenmill.errors import RunError
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.tokenize.vision_frames import latents
from tokenmill.train.vision_codebook import Codebook, gathered, summed
from tokenmill.train.vision_objective import Made, Objective, rows_of_latents
from tokenmill.train.vision_start_pictures import start_from_pictures

FROZEN = ("encoder.", "quant_conv.", "quantize.", "post_quant_conv.", "decoder.time_conv.", "decoder.time_res_stack.")
"""All that has a say in what a code is; the decoder's temporal layers too, whose small numbers are scaled up behind."""
_RECENT_STEPS = 100
_BUCKET = 1 << 25  # gradients that are averaged at once


def learning_rate(settings: TokenizerTraining, step: int) -> float:
    """Climb, stay, fall to zero: the end can be moved while the rate still stays."""
    fall = max(1.0, settings.fall_share * settings.steps)
    left = min(1.0, (settings.steps - step) / fall)
    factor = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * min((step + 1) / settings.rise_steps, factor, 1.0)


class TokenizerRun:
    """A run at step `step`, on one rank."""

    def __init__(self, settings: TokenizerTraining, model: Any, device: torch.device) -> None:
        self.settings, self.device, self.step = settings, device, 0
        self.model = model.to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.objective = Objective(settings.losses, settings.codebook, device=device)
        self.codebook = Codebook.of(self.model.quantize.embedding.weight)
        self.optimizer = torch.optim.AdamW(
            self._trained(), lr=1.0, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.judge = _judges_optimizer(self.objective, settings)
        self.last_used_V = torch.full_like(self.codebook.uses_V, -_RECENT_STEPS, dtype=torch.int64)

    def advance(self, pixels_BTCHW: torch.Tensor) -> dict[str, float]:
        """Take one step over this rank's share of the batch; returns its figures, equal on all ranks.

        Raises:
            RunError: the loss is not a number any more.
        """
        settings, step = self.settings, self.step
        torch.manual_seed(settings.seed * 1_000_003 + step)
        pixels = pixels_BTCHW.to(self.device, non_blocking=True)
        quantized = step >= settings.steps_without_codebook
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            made = self.objective.generator(
                self.model, pixels, step=step, quantized=quantized, encoder_learns=self.encoder_learns()
            )
        row = self._descend(made)
        row |= self._descend_judge(pixels, made)
        if made.codes_N is not None:
            row |= self._learn_codes(made.latents_ND, made.codes_N)
        self._average()
        self.step += 1
        return row

    def needs_codebook(self) -> bool:
        """Say whether the next step is the first with a codebook, after some without."""
        return 0 < self.step == self.settings.steps_without_codebook

    def encoder_learns(self) -> bool:
        """Say whether the next step moves the encoder and the codebook, or the decoder alone."""
        return self.step >= self.settings.freeze_encoder_steps

    def needs_pictures(self) -> bool:
        """Say whether the next step is the first, and the weights are yet to be solved for."""
        return self.step == 0 and self.settings.start == "pictures"

    @torch.no_grad()
    def start_from(self, batches: Iterable[torch.Tensor]) -> None:
        """Solve for the first weights, from pictures of some batches (this rank's share of each), equal in size."""
        found = torch.cat([gathered(pixels[:, 0].to(self.device)) for pixels in batches])
        start_from_pictures(self.model, found, generator=self._generator())
        for tensor in self.model.state_dict().values():
            from_first_rank(tensor)
        self.average.load_state_dict(self.model.state_dict())
        self.codebook = Codebook.of(self.model.quantize.embedding.weight)

    @torch.no_grad()
    def settle_codebook(self, batches: Iterable[torch.Tensor]) -> None:
        """Make the codebook by k-means over the latents of some batches (this rank's share of each)."""
        found = [rows_of_latents(latents(self.model, pixels.to(self.device))) for pixels in batches]
        self.codebook.settle(torch.cat(found), generator=self._generator())

    def named_trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the model's trained parameters, in their order."""
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    def _trained(self) -> list[torch.nn.Parameter]:
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        learns = self.settings.codebook.learning == "loss"
        self.model.quantize.embedding.weight.requires_grad_(learns)
        return [parameter for _, parameter in self.named_trained()]

    def _learning(self) -> list[torch.nn.Parameter]:
        """Return the parameters that the next step moves; the others lose their gradients, so they lose no weight."""
        frozen = () if self.encoder_learns() else FROZEN
        for name, parameter in self.named_trained():
            if name.startswith(frozen):
                parameter.grad = None
        return [parameter for name, parameter in self.named_trained() if not name.startswith(frozen)]

    def _descend(self, made: Made) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        made.loss.backward()  # type: ignore[no-untyped-call]
        parameters = self._learning()
        average_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf))
        row = averaged({"loss": float(made.loss.detach()), **made.terms}, self.device)
        if not math.isfinite(row["loss"]) or not math.isfinite(norm):
            raise RunError(
                f"tokenizer: the loss of step {self.step + 1} is not a number; resume with a smaller learning_rate"
            )
        self.optimizer.step()
        return {**row, "grad_norm": norm, "lr": learning_rate(self.settings, self.step)}

    def _descend_judge(self, pixels: torch.Tensor, made: Made) -> dict[str, float]:
        if self.judge is None:
            return {}
        loss = self.objective.discriminator(pixels, made, step=self.step)
        if loss is None:
            return {}
        self.judge.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.judge.param_groups[0]["params"])
        self.judge.step()
        return averaged({"discriminator": float(loss.detach())}, self.device)

    def _learn_codes(self, latents_ND: torch.Tensor, codes_N: torch.Tensor) -> dict[str, float]:
        settings, size = self.settings.codebook, len(self.model.quantize.embedding.weight)
        uses = summed(torch.bincount(codes_N, minlength=size).double())
        self.last_used_V[uses > 0] = self.step
        share = uses / uses.sum()
        row = {
            "perplexity": float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())),
            "usage": float((self.last_used_V > self.step - _RECENT_STEPS).double().mean()),
        }
        if not self.encoder_learns():
            return row
        if settings.learning == "ema":
            self.codebook.follow(latents_ND, codes_N, decay=settings.decay)
        else:
            self.codebook.count(codes_N, decay=settings.decay)
        falling = self.step >= self.settings.steps * (1 - self.settings.fall_share / 2)
        if settings.revive_every and self.step % settings.revive_every == 0 and not falling:
            below = settings.revive_below
            row["revived"] = self.codebook.revive(latents_ND, below=below, generator=self._generator())
        return row

    @torch.no_grad()
    def _average(self) -> None:
        """Average the weights; the first steps count less, so that the start is soon forgotten."""
        decay = min(self.settings.average_decay, self.step / (self.step + 10))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        if self.needs_codebook():
            self.average.quantize.embedding.weight.copy_(self.model.quantize.embedding.weight)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make every rank's gradients the mean over the ranks; each has as many crops, so it is that of the batch.

    Reduced after the backward pass, in buckets: simpler than overlapping both, and nothing has to be wrapped for it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    bucket: list[torch.Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.numel()
        if size >= _BUCKET:
            _reduce(bucket)
            bucket, size = [], 0
    if bucket:
        _reduce(bucket)


def from_first_rank(tensor: torch.Tensor) -> None:
    """Make every rank's tensor that of the first: what was solved for twice may differ in its last bits."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, src=0)


def averaged(row: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Average figures over the ranks; all name the same ones."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return dict(row)
    values = torch.tensor(list(row.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(row, (values / dist.get_world_size()).tolist(), strict=True))


def _reduce(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _judges_optimizer(objective: Objective, settings: TokenizerTraining) -> torch.optim.AdamW | None:
    parameters = list(objective.parameters())
    if not parameters:
        return None
    return torch.optim.AdamW(parameters, lr=settings.losses.adversarial.learning_rate, betas=(0.5, 0.9))
