"""What a recipe may say under `tokenizer`: the vision tokenizer that `tokenmill train-tokenizer` trains.

Part of the spine, like `settings_train`: validated in well under two seconds, without torch. Weights, schedule and
batches of Emu3's own tokenizer are unpublished (EMU3.md §2); its loss is L2 + LPIPS + GAN + commitment, and so is ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenmill.settings_train import TOKENIZER_RUNS

Share = Annotated[float, Field(ge=0.0)]
Whole = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
WINDOW_FRAMES = 4


class _Settings(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class TokenizerShape(_Settings):
    """The architecture, in the words of transformers' `Emu3VQVAEConfig`; group norm wants multiples of 32 channels.

    Four levels make 8×8 pixels a code. What does not fit together would fail in torch, at the first step.
    """

    base_channels: int = Field(default=64, gt=0, multiple_of=32)
    channel_multiplier: tuple[Whole, Whole, Whole, Whole] = (1, 1, 1, 1)
    hidden_size: int = Field(default=64, description="base_channels × the last of channel_multiplier")
    num_res_blocks: int = Field(default=0, ge=0, description="a level; at 0 no level changes its number of channels")
    codebook_size: int = Field(default=2048, ge=2)
    embed_dim: Whole = 4
    latent_channels: int = Field(default=4, description="as many as embed_dim")

    @model_validator(mode="after")
    def _parts_fit(self) -> TokenizerShape:
        last = self.base_channels * self.channel_multiplier[-1]
        if self.hidden_size != last:
            raise ValueError(f"hidden_size: {self.hidden_size} is not base_channels × the last multiplier, {last}")
        if self.latent_channels != self.embed_dim:
            raise ValueError(f"latent_channels: {self.latent_channels}, but embed_dim {self.embed_dim}; they are one")
        if self.num_res_blocks == 0 and set(self.channel_multiplier) != {1}:
            raise ValueError("channel_multiplier: without res blocks (num_res_blocks: 0) every level has 1")
        return self


class PerceptualLoss(_Settings):
    """LPIPS (Zhang et al. 2018), its weights by path: none are in any package."""

    weight: Share = 0.0
    weights: str = Field(default="", description="path of a safetensors or weights_only checkpoint of LPIPS")

    @model_validator(mode="after")
    def _weights_are_named(self) -> PerceptualLoss:
        if self.weight > 0 and not self.weights:
            raise ValueError("weights: name the file of LPIPS's weights, or set weight to 0")
        return self


class AdversarialLoss(_Settings):
    """Hinge loss of a PatchGAN discriminator (Esser et al. 2021)."""

    weight: Share = 0.0
    adaptive: bool = Field(
        default=True, description="scale by the ratio of the gradients at the decoder's last layer, as VQGAN does"
    )
    start_step: int = Field(default=0, ge=0, description="no adversarial loss before")
    channels: int = Field(default=64, ge=8)
    layers: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)


class CodebookSettings(_Settings):
    """How the codebook learns: moving averages of what its codes stand for, or a loss of its own."""

    learning: Literal["ema", "loss"] = "ema"
    decay: float = Field(default=0.99, gt=0, lt=1, description="ema only")
    weight: Share = Field(default=1.0, description="loss only: of the codebook loss")
    revive_every: int = Field(default=50, ge=0, description="steps between replacing dead codes; 0 = never")
    revive_below: float = Field(default=0.05, ge=0, description="a code is dead below this share of the mean use")


class TokenizerLosses(_Settings):
    """Every term and its weight."""

    l2: Share = 1.0
    l1: Share = 0.0
    commitment: Share = 0.1
    perceptual: PerceptualLoss = Field(default_factory=PerceptualLoss)
    adversarial: AdversarialLoss = Field(default_factory=AdversarialLoss)


class TokenizerBatches(_Settings):
    """What a step sees, over all ranks together."""

    side: int = Field(default=64, gt=0, multiple_of=8, description="side of the square crops, pixels")
    pictures: int = Field(default=16, gt=0, multiple_of=4, description="crops of side² in a step; four make a window")
    windows: Fraction = Field(default=0.1, description="share of steps with 4-frame windows of clips only")
    larger: dict[int, Fraction] = Field(
        default_factory=lambda: {2: 0.2, 4: 0.15},
        description="times `side` → share of steps with crops so much larger, and so many fewer",
    )
    recolour: Fraction = Field(default=0.0, description="share of crops whose colours are shifted")

    @model_validator(mode="after")
    def _shares_make_a_whole(self) -> TokenizerBatches:
        total = self.windows + sum(self.larger.values())
        if total > 1 + 1e-9:
            raise ValueError(f"windows and larger are shares of the steps; together they are {total:g}, more than 1")
        for times in self.larger:
            if times < 2:
                raise ValueError(f"larger: {times}: is how many times `side`, 2 or more")
        return self

    def crops(self) -> dict[str, int]:
        """Return, by kind of step, how many crops one has over all ranks: `1` for crops of `side`, `windows`, …"""
        kinds = {"1": self.pictures}
        kinds |= {str(times): self.pictures // times**2 for times, share in self.larger.items() if share > 0}
        return kinds | ({"windows": self.pictures // WINDOW_FRAMES} if self.windows > 0 else {})


class TokenizerStart(_Settings):
    """Weights to begin from: a folder of `Emu3VQVAE`, or a MoVQGAN image model (a file, or a folder of diffusers)."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, populate_by_name=True)

    path: str = Field(alias="from", description="local path of a folder or a file; safetensors, or no code inside")


class TokenizerTraining(_Settings):
    """One run that trains a vision tokenizer on the kept samples of the recipe's image and video sources."""

    run: str = Field(default="main", pattern=r"^[A-Za-z0-9_-]+$", description="name of the run, and of its folder")
    sources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="source → its share of the crops; absent: all image and video sources, by their numbers of samples",
    )
    held_out: Fraction = Field(default=0.02, description="share of the samples that is measured and never trained on")
    start: TokenizerStart | Literal["scratch", "pictures"] = Field(
        default="scratch",
        description="`pictures`: from scratch, first weights solved for from some of the pictures (96 or 128 channels)",
    )
    shape: TokenizerShape | None = Field(default=None, description="absent: that of `start`, else a small one")
    losses: TokenizerLosses = Field(default_factory=TokenizerLosses)
    codebook: CodebookSettings = Field(default_factory=CodebookSettings)
    batches: TokenizerBatches = Field(default_factory=TokenizerBatches)
    steps: int = Field(default=4000, ge=1)
    warm_up_steps: int | None = Field(
        default=None,
        ge=0,
        description="autoencoder without codebook, which k-means then makes; absent: 200 from scratch, else 0",
    )
    freeze_encoder_steps: int = Field(
        default=0,
        ge=0,
        description="the decoder alone learns in so many first steps; encoder, codebook and what a code means stay",
    )
    learning_rate: float = Field(default=2e-3, gt=0)
    rise_steps: int = Field(default=100, ge=1, description="learning rate climbs linearly")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="how it falls at the end")
    fall_share: Fraction = Field(default=0.75, description="last share of the steps, in which it falls to 0")
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: float = Field(default=1e-4, ge=0)
    clip: float = Field(default=1.0, ge=0.0, description="largest norm of the gradient; 0 = no clipping")
    average_decay: float = Field(default=0.998, ge=0, lt=1, description="of the averaged weights, which are exported")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: products under autocast")
    seed: int = Field(default=17, ge=0, description="of weights and draws")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ranks: int = Field(default=1, ge=1, description="processes on this machine: one a GPU, or a share of the cores")
    threads_per_rank: int = Field(default=0, ge=0, description="CPU threads of a rank; 0 = cores ÷ ranks")
    decode_threads: int = Field(default=1, ge=1, description="of a rank")
    cache_mb: int = Field(default=1024, ge=0, description="decoded pictures a rank keeps; small sets fit")
    max_pixels: int = Field(default=100_000_000, ge=1, description="of a picture or frame, checked before decoding")
    clip_timeout_s: float = Field(default=60.0, gt=0, description="for decoding one window of a clip")
    failure_budget: int = Field(default=100, ge=1, description="samples in a row that may fail before the run stops")
    checkpoint_every: int = Field(default=500, ge=1, description="steps; each is exported too")
    keep: int = Field(default=2, ge=1, description="newest checkpoints to keep")
    measure_every: int = Field(default=500, ge=0, description="steps; 0 measures at the end alone")
    measure_samples: int = Field(default=64, ge=1, description="held-out pictures, and clips, to measure, at most")
    measure_area: int = Field(default=65_536, ge=64, description="pixels that held-out pictures are shrunk to")
    tensorboard: bool = True

    @property
    def folder(self) -> str:
        """Name of the run's folder under `checkpoints/`."""
        return f"{TOKENIZER_RUNS}/{self.run}"

    @property
    def steps_without_codebook(self) -> int:
        """Steps of plain autoencoding at the start."""
        if self.warm_up_steps is None:
            return 200 if self.start == "scratch" else 0
        return self.warm_up_steps

    @model_validator(mode="after")
    def _codebook_is_trained(self) -> TokenizerTraining:
        if self.steps_without_codebook >= self.steps:
            raise ValueError(
                f"warm_up_steps: {self.steps_without_codebook} (200 from scratch where absent) leave none of "
                f"{self.steps} steps for the codebook"
            )
        return self

    @model_validator(mode="after")
    def _ranks_share_evenly(self) -> TokenizerTraining:
        for kind, crops in self.batches.crops().items():
            if crops == 0 or crops % self.ranks:
                what = "windows of 4 frames" if kind == "windows" else f"crops of {kind} × side"
                per = WINDOW_FRAMES if kind == "windows" else int(kind) ** 2
                raise ValueError(
                    f"batches.pictures: {self.batches.pictures} make {crops} {what} a step, which ranks "
                    f"({self.ranks}) cannot share evenly; take a multiple of {per * self.ranks}, or no such steps"
                )
        return self
