"""The recipe of a vision tokenizer's training: every number that shapes the weights, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenmill.errors import RecipeError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Strict):
    """The architecture, in the words of transformers' `Emu3VQVAEConfig`; group norm wants multiples of 32 channels."""

    base_channels: int = Field(default=64, multiple_of=32)
    channel_multiplier: tuple[int, ...] = (1, 1, 1, 1)
    hidden_size: int = 64
    num_res_blocks: int = 0
    codebook_size: int = 2048
    embed_dim: int = 4
    latent_channels: int = 4


class Batches(_Strict):
    """What a step sees: shares of steps by kind, and pictures in each."""

    side: int = Field(default=64, multiple_of=8, description="crop and scene side, pixels")
    pictures: int = Field(default=16, multiple_of=16, description="pictures of side² in a step")
    scenes: float = Field(default=0.9, ge=0, le=1, description="share of scenes in a step of both")
    large: float = Field(default=0.2, ge=0, le=1, description="share of steps with photograph crops of twice the side")
    largest: float = Field(
        default=0.15, ge=0, le=1, description="share of steps with photograph crops of four times the side"
    )
    windows: float = Field(default=0.1, ge=0, le=1, description="share of steps with 4-frame windows only")
    recolour: float = Field(default=0.5, ge=0, le=1, description="share of photograph crops whose colours are shifted")
    moving: float = Field(
        default=0.5, ge=0, le=1, description="share of moving scenes among windows, the rest are clips"
    )


class VisionRecipe(_Strict):
    """Everything `python -m tokenmill.train.vision_tokenizer` needs to know."""

    seed: int = 17
    photographs: tuple[str, ...] = Field(
        default=(), description="`packages` or folders of pictures, searched recursively"
    )
    clips: tuple[str, ...] = Field(default=(), description="`packages` or video files")
    shape: Shape = Shape()
    batches: Batches = Batches()
    steps: int = Field(default=4000, ge=1)
    warm_up_steps: int = Field(
        default=200, ge=1, description="autoencoder without codebook; then k-means makes the codebook"
    )
    learning_rate: float = 2e-3
    rise_steps: int = Field(default=100, ge=1, description="learning rate climbs linearly")
    fall_share: float = Field(
        default=0.75, ge=0, le=1, description="last share of the steps, learning rate falls linearly to 0"
    )
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    commitment: float = 0.1
    decoder_bfloat16: bool = Field(True, description="a third faster where the processor has bfloat16 products")
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    revive_every: int = Field(default=50, ge=1, description="steps between replacing codes nobody uses")
    revive_below: float = Field(default=0.05, ge=0, description="a code is dead below this share of the mean use")
    average_decay: float = Field(
        default=0.998, ge=0, lt=1, description="of the averaged weights that are measured and shipped"
    )
    save_every_s: float = 120
    measure_every: int = Field(default=500, ge=0, description="steps; 0 never measures")


def load_recipe(path: Path, **changes: Any) -> VisionRecipe:
    """Read a recipe; `changes` replace top-level keys. Raises RecipeError naming file and key."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return VisionRecipe.model_validate({**fields, **changes})
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors())
        raise RecipeError(f"{path}: {faults}") from error
