"""What the steps of a training run share: plan, loader, model and engine, opened on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from tokenmill.manifests.plan_border import first_step
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary
from tokenmill.train.attention import check_kernel
from tokenmill.train.checkpoints import RunFolder, run_folder
from tokenmill.train.compiling import check_compiler, compile_layers
from tokenmill.train.devices import peak_flops_here
from tokenmill.train.engine import start_distributed, start_engine
from tokenmill.train.evaluation import Evaluation
from tokenmill.train.first_weights import FirstWeights, find_first_weights, shape_to_take, take_weights
from tokenmill.train.flops import ModelFlops
from tokenmill.train.guard import Guard
from tokenmill.train.job import TrainJob
from tokenmill.train.loader import PlanLoader
from tokenmill.train.loading import loading
from tokenmill.train.model import PackedModel, build_model
from tokenmill.train.preference import Preference, check_preference
from tokenmill.train.reference_opening import Opening
from tokenmill.train.saving import restore_weights
from tokenmill.train.schedule import total_steps
from tokenmill.train.sequence_checks import check_heads, check_ranks
from tokenmill.train.world import SequenceGroup, sequence_group, world


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the steps of a run share.

    `first_step` is the one at which the plan takes over from the one before: the loader's steps count from there. The
    ranks of a `sequence` read the same packs, and each computes a part of them. `peak_flops`
    is what one device can do in a second, where that is known.
    """

    settings: TrainSettings
    folder: RunFolder
    loader: PlanLoader
    model: PackedModel
    engine: Any
    device: torch.device
    rank: int
    ranks: int
    sequence: SequenceGroup
    total_steps: int
    guard: Guard
    flops: ModelFlops
    peak_flops: float | None
    first_step: int = 0
    evaluation: Evaluation | None = None
    preference: Preference | None = None

    @property
    def packs(self) -> range:
        """The packs of the plan that the run reads, once or more often."""
        steps = self.total_steps - self.first_step
        return range(min(steps * self.loader.global_packs, self.loader.plan.num_packs))

    @property
    def opening(self) -> Opening:
        """What the reference of a preference run is opened by, before anything is restored."""
        return Opening(engine=self.engine, model=self.model, loader=self.loader, folder=self.folder,
                       settings=self.settings, packs=self.packs, device=self.device)  # fmt: skip


def start(job: TrainJob) -> Run:
    """Open the plan, build loader, model and engine."""
    settings = job.settings
    device = start_distributed(settings)
    if settings.compile:
        check_compiler(device.type)
    rank, ranks = world()
    check_kernel(settings.attention, device)
    check_ranks(settings.sequence_parallel, ranks)
    store = open_store(job.root, job.options)
    plan = open_plan(store, job.plan)
    check_preference(settings.preference, plan)
    vocabulary = build_vocabulary(plan.description["vocabulary"])
    folder = run_folder(store, settings.run, settings.checkpoints)
    first = find_first_weights(folder, settings, vocabulary, plan.description["vision"])
    model = _model(settings, plan, vocabulary, folder, first)
    flops = ModelFlops.of(model.causal)  # before ZeRO takes the weights apart
    if settings.compile:
        compile_layers(model.causal)
    model.causal.get_output_embeddings().set_up(settings, device)
    check_heads(settings.sequence_parallel, model.causal.config.num_attention_heads)
    sequence = sequence_group(settings.sequence_parallel, timedelta(seconds=settings.timeout_s))
    loader = PlanLoader(
        plan,
        vocabulary,
        global_packs=settings.global_packs_per_step,
        rank=rank // sequence.size,
        world=ranks // sequence.size,
        micro_packs=settings.micro_packs,
        attention_share=model.attention_share,
        **loading(plan, settings.loader),
    )
    engine = start_engine(model, settings, loader.micro_steps)
    if first is not None and first.is_other and settings.precision == "bf16":
        restore_weights(engine, model, first.folder, first.checkpoint)
    return Run(
        settings=settings,
        folder=folder,
        loader=loader,
        model=model,
        engine=engine,
        device=device,
        rank=rank,
        ranks=ranks,
        sequence=sequence,
        total_steps=total_steps(settings, plan.num_packs, first_step(plan.description)),
        guard=Guard(settings.guard),
        flops=flops,
        peak_flops=settings.peak_tflops * 1e12 if settings.peak_tflops else peak_flops_here(settings.precision),
        first_step=first_step(plan.description),
        evaluation=_evaluation(job, store, loader, sequence),
    )


def _model(
    settings: TrainSettings, plan: Plan, vocabulary: Vocabulary, folder: RunFolder, first: FirstWeights | None
) -> PackedModel:
    """Build the model; rank 0's has the weights that the run begins with."""
    model = build_model(
        settings.model,
        vocabulary,
        plan.context,
        loss_chunk_tokens=settings.loss_chunk_tokens,
        checkpointing=settings.activation_checkpointing,
        seed=settings.seed,
        like=shape_to_take(first, settings),
        attention_kernel=settings.attention,
        is_drawn=world()[0] == 0,
    )
    if first is not None and first.is_other:
        take_weights(first, model, folder)
    return model


def _evaluation(job: TrainJob, store: Store, loader: PlanLoader, sequence: SequenceGroup) -> Evaluation | None:
    if job.settings.evaluation is None or job.evaluation_plan is None:
        return None
    asked = job.settings.evaluation
    return Evaluation.of(store, job.evaluation_plan, asked, loader, job.settings.loader, sequence)
