"""What a training run needs of each GPU, and how long it takes: reckoned before anything is bought or built.

    memory = weights + optimizer + gradients + buffers + activations + the larger of (logits, a recomputed layer)

State is exact (`estimate_state`), activations are what the model's own code saves (`estimate_activations`), what the
loss holds follows from `loss.py`. Speed is an assumption times arithmetic: of its peak a GPU reaches `utilization`,
recomputed layers counted as work. 0.40 of it, the default, puts an 8B Llama on 8 H100 at 7,600 ids a second and GPU
without recomputation and 5,700 with it; torchtitan measured 6,667 with some of it recomputed (PEERS.md §3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tokenmill.errors import RecipeError
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train.devices import GIB, Device
from tokenmill.train.engine import deepspeed_config
from tokenmill.train.estimate_activations import activation_bytes
from tokenmill.train.estimate_state import StateBytes, heaviest_rank
from tokenmill.train.flops import ModelFlops
from tokenmill.train.model import described_config, embedding_dropout, weightless
from tokenmill.train.schedule import total_steps
from tokenmill.train.sequence_checks import check_heads, check_ranks

UTILIZATION = 0.40
_RESERVED = 0.06  # of a GPU's memory: CUDA's context, NCCL's buffers, what lies between blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What there is to read.

    Attributes:
        packs: of the plan; None where there is none yet.
        tokens, squares: Σ length and Σ length² over the documents of a pack, on average.
        first_step: at which the plan takes over from the one before.
    """

    context: int
    tokens: float
    squares: float
    packs: int | None = None
    first_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What it would run on."""

    device: Device
    gpus: int
    utilization: float = UTILIZATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of the GPU that holds most, by part, and of the host's memory beside it."""

    weights: int
    optimizer: int
    gradients: int
    buffers: int
    activations: int
    recomputed_layer: int
    logits: int
    host: int

    @property
    def total(self) -> int:
        """Recomputing begins when the output layer is done, so the two are never there together."""
        state = self.weights + self.optimizer + self.gradients + self.buffers
        return state + self.activations + max(self.recomputed_layer, self.logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An estimate of one run."""

    machines: Machines
    parameters: int
    micro_steps: int
    idle: float
    memory: Memory
    step_s: float
    tokens_per_step: float
    mfu: float
    steps: int | None

    @property
    def fits(self) -> bool:
        return self.memory.total <= (1 - _RESERVED) * self.machines.device.memory_gib * GIB

    def to_json(self) -> dict[str, Any]:
        gpus, memory = self.machines.gpus, self.memory
        days = None if self.steps is None else self.steps * self.step_s / 86_400
        return {
            "gpu": self.machines.device.name,
            "gpus": gpus,
            "utilization": self.machines.utilization,
            "parameters": self.parameters,
            "micro_steps": self.micro_steps,
            "idle": self.idle,
            "memory_bytes": {name: getattr(memory, name) for name in (*Memory.__slots__, "total") if name != "host"},
            "host_memory_bytes": memory.host,
            "gpu_memory_bytes": int(self.machines.device.memory_gib * GIB),
            "fits": self.fits,
            "step_s": self.step_s,
            "tokens_per_s": self.tokens_per_step / self.step_s,
            "tokens_per_s_of_a_gpu": self.tokens_per_step / self.step_s / gpus,
            "mfu": self.mfu,
            "steps": self.steps,
            "tokens": None if self.steps is None else self.steps * self.tokens_per_step,
            "days": days,
            "gpu_hours": None if days is None else days * 24 * gpus,
        }


def estimate(settings: TrainSettings, vocabulary: Vocabulary, work: Workload, machines: Machines) -> Estimate:
    """Reckon a run; raises RecipeError where the recipe's sizes do not go together or name no model."""
    gpus, packs = machines.gpus, settings.global_packs_per_step
    check_ranks(settings.sequence_parallel, gpus)
    readers = gpus // settings.sequence_parallel
    if readers > packs:
        raise RecipeError(f"train: {readers} GPUs cannot share {packs} packs a step (global_packs_per_step)")
    config = described_config(settings.model, vocabulary, work.context)
    check_heads(settings.sequence_parallel, config.num_attention_heads)
    model = weightless(config)
    micro_packs = min(settings.micro_packs, -(-packs // readers))
    micro_steps = -(-packs // (readers * micro_packs))
    state = heaviest_rank(model, deepspeed_config(settings, micro_steps), gpus)
    places = readers * micro_packs * micro_steps  # those beyond the packs are waited for as if they were full
    flops = ModelFlops.of(model.causal)
    asked = flops.training(packs * work.tokens, packs * work.squares)
    again = 1.0 if settings.activation_checkpointing == "none" else 4 / 3
    peak = gpus * machines.device.peak_flops(settings.precision)
    step_s = asked * again * places / packs / (peak * machines.utilization)
    return Estimate(
        machines=machines,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        micro_steps=micro_steps,
        idle=1 - packs / places,
        memory=_memory(settings, config, state, -(-micro_packs * work.context // settings.sequence_parallel)),
        step_s=step_s,
        tokens_per_step=packs * work.tokens,
        mfu=asked / step_s / peak,
        steps=_steps(settings, work),
    )


def logits_bytes(settings: TrainSettings, config: Any, tokens: int) -> int:
    """Count what the loss holds at most: a chunk's logits, and gradients of the output layer and of what enters it.

    Logits of bf16 are there once more in fp32 while they become losses; Liger's kernel needs no such copy. The output
    layer's gradient gathers in fp32, a chunk's part of it is made in bf16 first.
    """
    width = 2 if settings.precision == "bf16" else 4
    vocabulary, hidden = int(config.vocab_size), int(config.hidden_size)
    matrix = vocabulary * hidden
    chunk = min(settings.loss_chunk_tokens, tokens) * vocabulary
    passing = max(chunk * 4, matrix * 2) if width == 2 else 0
    return chunk * width + passing + matrix * 4 + 2 * tokens * hidden * width


def _memory(settings: TrainSettings, config: Any, state: StateBytes, tokens: int) -> Memory:
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    shared_by, checkpointing = settings.sequence_parallel, settings.activation_checkpointing
    found = activation_bytes(
        config, embedding_dropout(config, settings.model), dtype, tokens, cuda=True, shared_by=shared_by
    )
    return Memory(
        weights=state.weights,
        optimizer=state.optimizer,
        gradients=state.gradients.most,
        buffers=state.bucket + state.gathered,
        activations=found.kept(checkpointing),
        recomputed_layer=found.recomputed(checkpointing),
        logits=logits_bytes(settings, config, tokens),
        host=state.host + found.on_host(checkpointing),
    )


def _steps(settings: TrainSettings, work: Workload) -> int | None:
    """Give the steps that are still to be taken, if the plan or the recipe tells."""
    if work.packs is None:
        return settings.steps
    return total_steps(settings, work.packs, work.first_step) - work.first_step
