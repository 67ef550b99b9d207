"""What a recipe may say under `plan.mix` and `plan.templates`: how much of each source, shown in which ways.

Part of the spine, as `settings_train` is: nothing heavy is imported, so a wrong recipe is refused in under a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, model_validator
from pydantic_core import core_schema

Share = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
TemplateShares = dict[str, Share]

DEFAULT_TEMPLATES: dict[str, dict[str, float]] = {
    "image": {"generation": 0.6, "understanding": 0.35, "unconditional": 0.05},
    "video": {"generation": 0.6, "understanding": 0.35, "unconditional": 0.05},
    "text": {"language": 1.0},
    "document": {"interleaved": 0.5, "chat": 0.5},
}
PAIRS = "pair"  # of preference, of any modality: what the recipe's templates call them
PAIR_TEMPLATES: dict[str, float] = {"preference": 1.0}  # where a recipe says nothing of them
SUM_OF_SHARES = 1e-6  # by which shares may miss what they have to add up to: 1/3 is written 0.333333


class SourceMix(BaseModel):
    """How much of one source a plan takes: so many epochs, or a share of the plan's tokens."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)

    epochs: Share | None = Field(default=None, description="how often it is gone through; 0.5 = a random half")
    share: Fraction | None = Field(default=None, description="of the plan's tokens, instead of epochs")
    max_epochs: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="with share: never more than this; absent = 1"
    )
    templates: TemplateShares | None = Field(
        default=None, description="template → share of its documents, instead of the modality's"
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> SourceMix:
        if self.epochs is not None and self.share is not None:
            raise ValueError(f"has epochs {self.epochs:g} and share {self.share:g}; give one of them")
        if self.max_epochs is not None and self.share is None:
            raise ValueError(f"max_epochs: {self.max_epochs:g} limits a share; give share, or leave it out")
        if self.templates is not None and sum(self.templates.values()) <= 0:
            raise ValueError("templates: at least one template needs a share above 0")
        return self

    @property
    def is_taken(self) -> bool:
        """Tell whether any of the source is asked for."""
        return (self.share if self.share is not None else 1.0 if self.epochs is None else self.epochs) > 0


def _source_mix(_: Any, handler: Any) -> core_schema.CoreSchema:
    """Read a number as epochs. A union would complain twice of whatever is wrong."""

    def from_number(value: Any) -> Any:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return {"epochs": value}
        if isinstance(value, (Mapping, SourceMix)):
            return value
        raise ValueError("is a number of epochs, or a mapping of epochs or share, max_epochs, templates")

    return core_schema.no_info_before_validator_function(from_number, handler(SourceMix))


Mix = dict[str, Annotated[SourceMix | float, GetPydanticSchema(_source_mix)]]


def check_shares(mix: Mapping[str, SourceMix], tokens: int | None) -> None:
    """Refuse shares that contradict each other before anything is counted; raises ValueError."""
    shares = {name: one.share for name, one in mix.items() if one.share is not None}
    if not shares:
        if tokens is not None:
            raise ValueError(f"tokens: is {tokens}, but no source in mix has a share of them; give shares, not epochs")
        return
    told = " + ".join(f"{name} {share:g}" for name, share in shares.items())
    rest = [name for name, one in mix.items() if one.share is None and one.epochs is None]
    if rest:
        raise ValueError(f"mix.{rest[0]}: needs share or epochs, since other sources have shares ({told})")
    fixed = [name for name, one in mix.items() if one.epochs]
    total = sum(shares.values())
    if total > 1 + SUM_OF_SHARES:
        raise ValueError(f"mix: the shares add up to {total:g} ({told}), more than the whole")
    if fixed and total > 1 - SUM_OF_SHARES:
        raise ValueError(f"mix: the shares add up to 1 ({told}), which leaves nothing to {', '.join(fixed)} by epochs")
    if not fixed and total < 1 - SUM_OF_SHARES:
        raise ValueError(f"mix: the shares add up to {total:g} ({told}); without a source by epochs they have to be 1")
