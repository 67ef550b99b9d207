"""What a recipe may say under `train.model` and `train.export`: sizes by name or number, or a model to start from.

Numbers that are left out are those of the preset; without one they are small enough to train on a laptop. Part of the
spine: nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A model's shape, all of it said; parameters of the layers alone follow each preset."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    dropout: float = 0.0
    rope_base: float = 1e6
    tie_embeddings: bool = False


PRESETS: Mapping[str, Sizes] = {
    "tiny": Sizes(hidden=192, layers=5, heads=6, kv_heads=2, ffn=512),  # 2 M
    "100m": Sizes(hidden=768, layers=14, heads=12, kv_heads=4, ffn=2304),  # 96 M
    "1b": Sizes(hidden=2048, layers=22, heads=16, kv_heads=4, ffn=5632),  # 992 M
    "emu3-8b": Sizes(hidden=4096, layers=32, heads=32, kv_heads=8, ffn=14336, dropout=0.1),  # 6.98 B; EMU3.md §5
}


class ModelSettings(BaseModel):
    """The language model: sizes, a preset, or a model in transformers' format whose weights to start from."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, populate_by_name=True)

    preset: Literal["tiny", "100m", "1b", "emu3-8b"] | None = Field(
        default=None, description="sizes by name, tiny where absent; what is said below goes before"
    )
    from_path: str | None = Field(
        default=None,
        alias="from",
        description="a causal model in transformers' format to start from: folder or hub name; sizes are its own",
    )
    rows: Literal["tokens", "ids", "fresh"] = Field(
        default="tokens",
        description="whose rows of `from` are kept: those of tokens that both vocabularies have, those of the same "
        "number among the text ids, or none",
    )
    context: Positive | None = Field(
        default=None, description="ids the model is made for; absent: as `from` is, else the plan's"
    )
    hidden: int | None = Field(default=None, ge=8, description="width")
    layers: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    ffn: int | None = Field(default=None, ge=8, description="width inside the SwiGLU")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="on input embeddings and residual branches; Emu3 has 0.1"
    )
    rope_base: float | None = Field(default=None, gt=0, description="of rotary positions; 1e6 in all presets")
    tie_embeddings: bool | None = Field(default=None, description="one matrix for input and output; false in presets")
    init_std: float = Field(default=0.02, gt=0, description="deviation of fresh matrices")
    scale_residual: bool = Field(
        default=False, description="divide it by √(2 · layers) in matrices that end in a residual sum"
    )

    @property
    def sizes(self) -> Sizes:
        """The preset's sizes with what is said laid over them."""
        sizes = asdict(PRESETS[self.preset or "tiny"])
        return Sizes(**{name: size if (said := getattr(self, name)) is None else said for name, size in sizes.items()})

    @property
    def is_left_out(self) -> bool:
        """Tell whether neither a model nor a size is named: a run that starts from another then takes that one's."""
        names = ("preset", "from_path", "hidden", "layers", "heads", "kv_heads", "ffn", "tie_embeddings")
        return all(getattr(self, name) is None for name in names)

    def over(self, other: ModelSettings) -> ModelSettings:
        """Return these settings, laid over others where they name neither a model nor a size."""
        if not self.is_left_out:
            return self
        before, said = (one.model_dump(exclude_unset=True, by_alias=True) for one in (other, self))
        return ModelSettings.model_validate(before | said)

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelSettings:
        said = [n for n in ("preset", "hidden", "layers", "heads", "kv_heads", "ffn", "tie_embeddings")
                if getattr(self, n) is not None]  # fmt: skip
        if self.from_path is not None and said:
            raise ValueError(f"{said[0]}: stands beside from, which brings its own; leave one of them out")
        sizes = self.sizes
        if sizes.hidden % sizes.heads or sizes.heads % sizes.kv_heads or (sizes.hidden // sizes.heads) % 2:
            raise ValueError(
                f"hidden {sizes.hidden}, heads {sizes.heads}, kv_heads {sizes.kv_heads}: heads must divide hidden into "
                "an even width, and kv_heads must divide heads"
            )
        return self


class ExportSettings(BaseModel):
    """How the trained model is written for transformers."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)

    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of the weights that are written")
    shard_bytes: Positive = Field(default=5 * 10**9, description="of a file of weights, at most; also what it takes")
