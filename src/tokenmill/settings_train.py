"""What a recipe may say under `plan` and `train`: names, meanings, defaults, limits.

Part of the spine, so that a recipe is validated as a whole in well under two seconds: neither torch nor DeepSpeed is
imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
TOKENIZER_RUNS = "tokenizers"
"""Below `checkpoints/`: where the runs of `train-tokenizer` lie, each in a folder of its own."""

DEFAULT_TEMPLATES: dict[str, dict[str, float]] = {
    "image": {"generation": 0.6, "understanding": 0.35, "unconditional": 0.05},
    "video": {"generation": 0.6, "understanding": 0.35, "unconditional": 0.05},
    "text": {"language": 1.0},
    "document": {"interleaved": 0.5, "chat": 0.5},
}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class PlanSettings(_Settings):
    """One phase of training: which documents, in which order, in packs of which length."""

    phase: str = Field(
        default="pretrain", pattern=r"^[A-Za-z0-9_-]+$", description="name of the phase, and of its folder"
    )
    context: int = Field(default=1024, ge=32, description="ids in a pack")
    seed: int = Field(
        default=0, description="of the shuffling and the drawing of templates; the held-out part does not hang on it"
    )
    mix: dict[str, Share] = Field(
        default_factory=dict, description="source → how often it is gone through (0.5 = a random half); 1 where absent"
    )
    templates: dict[str, dict[str, Share]] = Field(
        default_factory=lambda: {modality: dict(shares) for modality, shares in DEFAULT_TEMPLATES.items()},
        description="modality → template → share of its documents; a sample draws among those that fit it",
    )
    vision_weight: float = Field(default=0.5, ge=0.0, description="loss weight of an id of a picture or clip")
    text_weight: float = Field(default=1.0, ge=0.0, description="loss weight of an id of text")
    window_documents: int = Field(
        default=20_000, ge=1, description="documents that are shuffled and packed together, at least"
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
    exclude: tuple[str, ...] = Field(default=(), description="sample keys to leave out")

    @model_validator(mode="after")
    def _templates_have_shares(self) -> PlanSettings:
        for modality, shares in self.templates.items():
            if sum(shares.values()) <= 0:
                raise ValueError(f"templates.{modality}: at least one template needs a share above 0")
        return self


class ModelSettings(_Settings):
    """The language model: sizes, a preset, or a model in transformers' format whose weights to start from."""

    preset: Literal["emu3-8b"] | None = Field(
        default=None, description="sizes by name (EMU3.md §5); the fields below then rest"
    )
    from_path: str | None = Field(
        default=None, alias="from", description="folder in transformers' format to start from"
    )
    hidden: int = Field(default=192, ge=8, description="width")
    layers: int = Field(default=5, ge=1)
    heads: int = Field(default=6, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    ffn: int = Field(default=512, ge=8, description="width inside the SwiGLU")
    dropout: Fraction = Field(default=0.0, description="on input embeddings and residual branches; Emu3 has 0.1")
    rope_base: float = Field(default=1e6, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSettings:
        if self.hidden % self.heads or self.heads % self.kv_heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden {self.hidden}, heads {self.heads}, kv_heads {self.kv_heads}: heads must divide hidden into "
                "an even width, and kv_heads must divide heads"
            )
        return self


class LoaderSettings(_Settings):
    """How a rank gets the bytes of its packs; nothing here changes what it reads."""

    threads: int = Field(default=2, ge=0, le=256, description="that read and assemble steps ahead; 0 = none ahead")
    read_ahead_steps: int = Field(default=4, ge=1, description="steps that are made before they are asked for, at most")
    read_ahead_bytes: int = Field(
        default=2**30, ge=2**20, description="of those steps' arrays in memory, at most; one step always is"
    )
    connections: int = Field(default=16, ge=1, le=256, description="requests to a remote store at the same time")
    cache: str | None = Field(
        default=None, description="folder on a local disk that keeps shards of a remote store, for all ranks of a node"
    )
    cache_bytes: int = Field(default=100 * 10**9, ge=1, description="what that folder may hold")
    check_digests: bool = Field(
        default=False, description="compare each shard's sha256 with the plan's before it is used"
    )
    timeout_s: float = Field(default=600.0, gt=0, description="how long a step may be waited for")

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache or "").expanduser().absolute()


class TrainSettings(_Settings):
    """One training run over one plan."""

    run: str = Field(default="main", pattern=r"^[A-Za-z0-9_-]+$", description="name of the run, and of its folder")
    phase: str = Field(default="pretrain", description="the plan to train on")
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(default=0, description="of the initial weights and of dropout")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ranks: int = Field(
        default=2, ge=1, description="processes on this machine: one a GPU, or a share of the cores each"
    )
    threads_per_rank: int = Field(default=0, ge=0, description="CPU threads of a rank; 0 = cores ÷ ranks")
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
    activation_checkpointing: bool = False
    loss_chunk_tokens: int = Field(default=1024, ge=1, description="ids whose logits exist at the same time")
    checkpoint_every: int = Field(default=100, ge=1, description="steps")
    keep: int = Field(default=2, ge=1, description="newest checkpoints to keep")
    tensorboard: bool = True
    log_samples: bool = Field(default=False, description="also write which samples each step read (samples.jsonl)")
    peak_tflops: float | None = Field(
        default=None, gt=0, description="of one device, to log the share of it that is used (MFU)"
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="laid over the DeepSpeed configuration")

    @field_validator("run")
    @classmethod
    def _folder_is_its_own(cls, run: str) -> str:
        if run == TOKENIZER_RUNS:
            raise ValueError(f"checkpoints/{run}/ holds the runs of train-tokenizer; take another name")
        return run

    @model_validator(mode="after")
    def _bf16_has_master_weights(self) -> TrainSettings:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision bf16 needs zero_stage 1, 2 or 3: ZeRO keeps the fp32 master weights")
        return self
