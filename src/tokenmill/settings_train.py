"""What a recipe may say under `plan` and `train`: names, meanings, defaults, limits.

Part of the spine, so that a recipe is validated as a whole in well under two seconds: neither torch nor DeepSpeed is
imported here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenmill.settings_evaluation import EvaluationSettings
from tokenmill.settings_keeping import GuardSettings
from tokenmill.settings_loader import LoaderSettings
from tokenmill.settings_mix import (
    DEFAULT_TEMPLATES,
    PAIR_TEMPLATES,
    PAIRS,
    Fraction,
    Mix,
    Share,
    SourceMix,
    TemplateShares,
    check_shares,
)
from tokenmill.settings_model import ExportSettings, ModelSettings
from tokenmill.settings_preference import PreferenceSettings
from tokenmill.settings_watch import TrackioSettings, WandbSettings

TOKENIZER_RUNS = "tokenizers"
"""Below `checkpoints/`: where the runs of `train-tokenizer` lie, each in a folder of its own."""


class _Settings(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, populate_by_name=True)


class PhaseSettings(_Settings):
    """Which documents are trained on, in which order, in packs of which length: a plan, or where a phase differs."""

    context: int = Field(default=1024, ge=32, le=2**24, description="ids in a pack")
    seed: int = Field(
        default=0, description="of the shuffling and the drawing of templates; the held-out part does not hang on it"
    )
    mix: Mix = Field(
        default_factory=dict,
        description="source → epochs (0.5 = a random half), or {epochs | share, max_epochs, templates}; 1 where absent",
    )
    tokens: int | None = Field(
        default=None, ge=1, description="of the whole plan, with shares; absent = as many as max_epochs allow"
    )
    templates: dict[str, TemplateShares] = Field(
        default_factory=lambda: {modality: dict(shares) for modality, shares in DEFAULT_TEMPLATES.items()},
        description="modality → template → share of its documents; a sample draws among those that fit it",
    )
    captions: Literal["random", "first", "cycle"] = Field(
        default="random", description="of several captions: any, always the first, or the next one each repetition"
    )
    vision_weight: Share = Field(default=0.5, description="loss weight of an id of a picture or clip")
    text_weight: Share = Field(default=1.0, description="loss weight of an id of text")
    window_documents: int = Field(
        default=20_000, ge=1, description="documents that are shuffled and packed together, at least"
    )
    window_packs: int = Field(
        default=1_000, ge=1, description="packs of a window, at least, as far as sizes of sources are known"
    )
    min_piece: int = Field(default=16, ge=2, description="ids; a text is never cut into pieces shorter than this")
    split_long_clips: bool = Field(
        default=False, description="take a clip longer than the context as several documents of whole latent frames"
    )
    split_long_pages: bool = Field(
        default=False, description="take a page longer than the context as several documents, no picture cut"
    )
    shorten_long_chats: bool = Field(
        default=False, description="take the leading turns of a conversation longer than the context"
    )
    held_out: Fraction = Field(default=0.0, description="share of the samples kept out of training, for evaluation")
    part: Literal["training", "held_out"] = Field(
        default="training", description="which side of that line this plan takes"
    )
    exclude: tuple[str, ...] = Field(default=(), description="samples to leave out: key or source/key")
    exclude_files: tuple[str, ...] = Field(
        default=(), description="lists of such samples: text, JSONL or Parquet; paths or URLs"
    )
    continue_from: str | None = Field(
        default=None,
        exclude=True,  # not how it was named but what it meant is part of the plan's identity
        description="PLAN@STEP or RUN that this plan goes on from: what remains of it, and the data it did not have",
    )

    @field_validator("tokens", mode="before")
    @classmethod
    def _whole_number(cls, tokens: Any) -> Any:
        """Read `1e9` as a number: to YAML it is a text."""
        if isinstance(tokens, str):
            with contextlib.suppress(ValueError, OverflowError):
                return int(float(tokens))
        return tokens

    @model_validator(mode="after")
    def _templates_have_shares(self) -> PhaseSettings:
        for modality, shares in self.templates.items():
            if sum(shares.values()) <= 0:
                raise ValueError(f"templates.{modality}: at least one template needs a share above 0")
        return self

    def of_source(self, source: str) -> SourceMix:
        """Say how much of a source is taken: what `mix` says of it, else one epoch."""
        found = self.mix.get(source, 1.0)
        return found if isinstance(found, SourceMix) else SourceMix(epochs=found)

    def templates_of(self, source: str, modality: str) -> Mapping[str, float]:
        """Return the shares of templates for samples of a source: its own, else those of the modality."""
        own = self.of_source(source).templates
        if own is not None:
            return own
        return self.templates.get(modality, PAIR_TEMPLATES if modality == PAIRS else {})

    def said(self) -> dict[str, Any]:
        """Return the keys that are given, without those that name phases."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"phase", "phases"}}

    def check_whole(self) -> None:
        """Refuse keys that do not go together, once all that a phase says is there; raises ValueError."""
        if self.min_piece > self.context // 2:
            told = f"min_piece: {self.min_piece} is above half the context, {self.context // 2}"
            raise ValueError(f"{told}; lower it, or raise context")
        check_shares({source: self.of_source(source) for source in self.mix}, self.tokens)

    @property
    def has_shares(self) -> bool:
        """Tell whether epochs follow from shares of tokens."""
        return any(self.of_source(name).share is not None for name in self.mix)


class PlanSettings(PhaseSettings):
    """One phase of training, or several: each of `phases` is the plan with some keys said anew."""

    phase: str = Field(
        default="pretrain", pattern=r"^[A-Za-z0-9_-]+$", description="name of the phase, and of its folder"
    )
    phases: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], PhaseSettings] = Field(
        default_factory=dict, description="name → where it differs; a key said here replaces the plan's whole"
    )

    @model_validator(mode="after")
    def _phases_fit(self) -> PlanSettings:
        if self.phases and "phase" in self.model_fields_set:
            raise ValueError(f"phase: is {self.phase!r}, but phases names {', '.join(self.phases)}; leave phase out")
        if not self.phases:
            self.check_whole()
        for name, one in self.phases.items():
            merged = one.model_copy(update=self.said() | one.said())
            try:
                merged.check_whole()
            except ValueError as error:
                raise ValueError(f"phases.{name}.{error}") from error
        return self

    def resolved(self) -> dict[str, PlanSettings]:
        """Return a plan for every phase, by name; of a recipe without phases there is one."""
        if not self.phases:
            return {self.phase: self}
        shared = {key: value for key, value in self.said().items() if key != "continue_from"}  # is said of one phase
        return {name: PlanSettings(**(shared | one.said()), phase=name) for name, one in self.phases.items()}


def _checkpointing(value: Any) -> Any:
    """Read `true` as on the device: there was no other place once."""
    return {True: "device", False: "none"}.get(value, value) if isinstance(value, bool) else value


Checkpointing = Annotated[Literal["none", "device", "cpu"], BeforeValidator(_checkpointing)]


class TrainPhase(_Settings):
    """One training run over one plan, or where a phase's run differs from the others."""

    run: str = Field(default="main", pattern=r"^[A-Za-z0-9_-]+$", description="name of the run, and of its folder")
    phase: str = Field(default="pretrain", description="the plan to train on")
    start_from: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]+(@[0-9]+)?$",
        description="RUN or RUN@STEP whose weights a fresh run takes, its newest checkpoint's or those of a step",
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(default=0, description="of the initial weights and of dropout")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ranks: int = Field(
        default=2, ge=1, description="processes on this machine: one a GPU, or a share of the cores each"
    )
    threads_per_rank: int = Field(default=0, ge=0, description="CPU threads of a rank; 0 = cores ÷ ranks")
    sequence_parallel: int = Field(
        default=1, ge=1, description="neighbouring ranks that share each pack; divides the ranks and the model's heads"
    )
    attention: Literal["auto", "varlen", "sdpa", "flex"] = Field(
        default="auto", description="kernel; auto = varlen on CUDA in bf16, else one document at a time"
    )
    global_packs_per_step: int = Field(
        default=16, ge=1, description="packs in an optimizer step, whatever the number of ranks"
    )
    micro_packs: int = Field(default=1, ge=1, description="packs that go through the model at once on a rank")
    loader: LoaderSettings = Field(default_factory=LoaderSettings)
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; absent = as many as `epochs` needs")
    epochs: float = Field(default=1.0, gt=0, description="times through the plan, where `steps` is absent")
    lr: float = Field(default=1e-3, gt=0)
    min_lr_share: Fraction = Field(default=0.0, description="where the schedule ends, as a share of `lr`")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.1, ge=0.0, description="on matrices; never on norms and embeddings")
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-6, gt=0)
    clip: float = Field(default=1.0, ge=0.0, description="largest norm of the gradient; 0 = no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = Field(
        default="none", description="to the host's memory: Adam with its states and master weights, or the weights too"
    )
    activation_checkpointing: Checkpointing = Field(
        default="none", description="keep only what enters each layer, on the device or in the host's memory (cpu)"
    )
    compile: bool = Field(
        default=False, description="compile the layers' parts at the first step (torch.compile); needs a compiler"
    )
    preference: PreferenceSettings | None = Field(
        default=None, description="DPO on the plan's preference pairs; needed where a plan has some"
    )
    loss_chunk_tokens: int = Field(default=1024, ge=1, description="ids whose logits exist at the same time")
    loss_kernel: Literal["auto", "chunked", "liger"] = Field(
        default="auto", description="of the loss; auto = Liger's on CUDA where it is installed, torch's elsewhere"
    )
    z_loss: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="times log² of the softmax's normaliser, beside the loss; 1e-4 in PaLM"
    )
    evaluation: EvaluationSettings | None = Field(default=None, description="losses on held-out packs while training")
    checkpoint_every: int = Field(default=100, ge=1, description="steps")
    keep: int = Field(default=2, ge=1, description="newest checkpoints to keep")
    export: ExportSettings = Field(default_factory=ExportSettings)
    timeout_s: float = Field(
        default=600.0, gt=0, description="how long ranks wait for each other, at the start and in each exchange"
    )
    milestone_every: int | None = Field(
        default=None, ge=1, description="steps; the checkpoints of these steps are written and never removed"
    )
    save_in_background: bool = Field(
        default=True, description="go on training while a checkpoint is written; it exists a few steps later"
    )
    on_save_error: Literal["stop", "continue"] = Field(
        default="stop", description="when a checkpoint cannot be written (disk full): end the run, or try the next"
    )
    checkpoints: str | None = Field(
        default=None,
        description="URL or folder for the checkpoints' tensors; absent = beside their records in the root",
    )
    guard: GuardSettings = Field(default_factory=GuardSettings)
    restarts: int = Field(
        default=0, ge=0, description="times the ranks are started anew after one died; a new checkpoint sets it back"
    )
    restart_wait_s: float = Field(default=5.0, gt=0, description="before the first; doubled each time, up to a minute")
    tensorboard: bool = True
    wandb: WandbSettings | None = Field(default=None, description="send the metrics to Weights & Biases too")
    trackio: TrackioSettings | None = Field(default=None, description="send the metrics to trackio too")
    log_samples: bool = Field(default=False, description="also write which samples each step read (samples.jsonl)")
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="of one device, to log the share of it that is used (MFU); absent: by the GPU's name",
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="laid over the DeepSpeed configuration")


class TrainSettings(TrainPhase):
    """One training run over one plan, or several runs, each from the weights of the one before."""

    phases: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], TrainPhase] = Field(
        default_factory=dict,
        description="name → where its run differs; a key said here replaces train's whole, a model without sizes is "
        "laid over. Its plan is the phase of that name, its run RUN-name, its first weights those of the phase before",
    )

    @field_validator("run")
    @classmethod
    def _folder_is_its_own(cls, run: str) -> str:
        if run == TOKENIZER_RUNS:
            raise ValueError(f"checkpoints/{run}/ holds the runs of train-tokenizer; take another name")
        return run

    @model_validator(mode="after")
    def _phases_fit(self) -> TrainSettings:
        if self.phases and "phase" in self.model_fields_set:
            raise ValueError(f"phase: is {self.phase!r}, but phases names {', '.join(self.phases)}; leave phase out")
        runs = [one.run for one in self.resolved().values()]
        if len(set(runs)) < len(runs):
            raise ValueError(f"phases: two of them have one run; found {', '.join(runs)}")
        for one in self.resolved().values():
            if one.start_from is not None and one.start_from.partition("@")[0] == one.run:
                raise ValueError(
                    f"start_from: {one.start_from} is the run itself; name another, or give run a new name"
                )
        return self

    def resolved(self) -> dict[str, TrainSettings]:
        """Return the settings of every run by its phase, in the order of training; one without phases.

        Raises ValueError where what a phase says does not go with the rest.
        """
        if not self.phases:
            return {self.phase: self}
        shared = {key: getattr(self, key) for key in self.model_fields_set - {"phases"}}
        found: dict[str, TrainSettings] = {}
        before = self.start_from
        for name, phase in self.phases.items():
            said = {key: getattr(phase, key) for key in phase.model_fields_set}
            if "model" in said:
                said["model"] = phase.model.over(self.model)
            own = {"phase": name, "run": f"{self.run}-{name}", "start_from": before}
            found[name] = _phase_settings(name, shared | own | said)
            before = found[name].run
        return found

    @property
    def last(self) -> TrainSettings:
        """The run whose model is drawn with and evaluated: the last phase's."""
        return list(self.resolved().values())[-1]

    @model_validator(mode="after")
    def _ranks_share_packs_evenly(self) -> TrainSettings:
        size = self.sequence_parallel
        if self.ranks % size and size % self.ranks:  # several machines may make up a group
            raise ValueError(f"sequence_parallel: groups of {size} ranks do not make up {self.ranks} ranks a machine")
        heads = self.model.sizes.heads
        is_described = self.model.from_path is None and not (self.start_from and self.model.is_left_out)
        if is_described and heads % size:
            raise ValueError(f"sequence_parallel: {size} ranks cannot share {heads} heads (model.heads)")
        return self

    @model_validator(mode="after")
    def _attention_is_fit_for_the_rest(self) -> TrainSettings:
        if self.attention in ("varlen", "flex") and self.device == "cpu":
            raise ValueError(f"attention {self.attention} trains on CUDA devices alone, found device cpu; take auto")
        if self.attention == "varlen" and self.precision != "bf16":
            raise ValueError(
                f"attention varlen takes 16-bit numbers alone, found precision {self.precision}; take auto"
            )
        return self

    @model_validator(mode="after")
    def _stage_is_fit_for_the_rest(self) -> TrainSettings:
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload {self.offload} needs zero_stage {least} or more, found {self.zero_stage}")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile with zero_stage 3 compiles the hooks that gather weights, not the layers: take 2")
        return self

    @model_validator(mode="after")
    def _bf16_has_master_weights(self) -> TrainSettings:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision bf16 needs zero_stage 1, 2 or 3: ZeRO keeps the fp32 master weights")
        return self

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> TrainSettings:
        if self.preference is None:
            return self
        if self.sequence_parallel > 1:
            raise ValueError(
                f"preference: a pair has to be whole on a rank; sequence_parallel is {self.sequence_parallel}"
            )
        if self.z_loss:
            raise ValueError("preference: z_loss would weigh less than nothing on rejected answers; leave it out")
        return self


def _phase_settings(name: str, said: Mapping[str, Any]) -> TrainSettings:
    try:
        return TrainSettings(**said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["phases", name, *(str(part) for part in first["loc"])])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
