"""What a recipe may say under `tokenizer`: the vision tokenizer that `tokenmill train-tokenizer` trains.

Part of the spine, like `settings_train`: validated in well under two seconds, without torch. Weights, schedule and
batches of Emu3's own tokenizer are unpublished (EMU3.md §2); its loss is L2 + LPIPS + GAN + commitment, and so is ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerShape(_Settings):
    """The architecture, in the words of transformers' `Emu3VQVAEConfig`; group norm wants multiples of 32 channels."""

    base_channels: int = Field(default=64, multiple_of=32)
    channel_multiplier: tuple[int, ...] = (1, 1, 1, 1)
    hidden_size: int = 64
    num_res_blocks: int = 0
    codebook_size: int = 2048
    embed_dim: int = 4
    latent_channels: int = 4


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
    perceptual: PerceptualLoss = PerceptualLoss()
    adversarial: AdversarialLoss = AdversarialLoss()


class TokenizerBatches(_Settings):
    """What a step sees, over all ranks together."""

    side: int = Field(default=64, multiple_of=8, description="side of the square crops, pixels")
    pictures: int = Field(default=16, multiple_of=4, description="crops of side² in a step; four make a window")
    windows: Fraction = Field(default=0.1, description="share of steps with 4-frame windows of clips only")
    larger: dict[int, Fraction] = Field(
        default_factory=lambda: {2: 0.2, 4: 0.15},
        description="times `side` → share of steps with crops so much larger, and so many fewer",
    )
    recolour: Fraction = Field(default=0.0, description="share of crops whose colours are shifted")
